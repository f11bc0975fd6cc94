"""Split inference: how much of an input comes back from what an inner layer says of it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.errors import DataError, HauberkError, ModelError, UsageError
from hauberk.core.finding import Advice, Evidence, Finding, Gallery, Status, Table
from hauberk.core.image_quality import psnr, ssim
from hauberk.core.kinds import Reconstruction, check
from hauberk.core.overlap import fingerprints
from hauberk.core.picture import picture
from hauberk.core.rng import derive_seed, generator
from hauberk.core.stats import mean_interval, wilson
from hauberk.core.target import Target, evaluating
from hauberk.privacy.inversion.client import widened
from hauberk.privacy.inversion.trial import scalar_bounds
from hauberk.privacy.membership.matching import operations
from hauberk.privacy.model_inversion import decoder_inversion, feature_inversion
from hauberk.privacy.model_inversion.decoder import features_at
from hauberk.privacy.model_inversion.descent import TAGS

THREAT = (
    "an adversary who sees the features of inputs where the model is split, can ask its first part, and holds inputs of the kind"
)
RECOGNISED = {"image": 20.0, "tabular": 10.0}  # dB: of the range of images; of the deviation of each column of tables
NEARER = 3.0  # dB, half the squared error: how much nearer than a guess without the features an input must come back
MAP = 2**26  # numbers in the decoder's linear part: half a gigabyte
FEW, REHEARSED = 8, 16  # the fewest inputs to win back; inputs of the adversary's own on which attacks are compared
ADVICE = (
    Advice("Split later, at a layer of the table below that gives less away, and send no more of it than the answer needs"),
    Advice("Train with a noisy bottleneck before the last layer, split behind it, and look at this figure again",
           "from hauberk.privacy.defence import mid, with_bottleneck; narrow = with_bottleneck(model, width=4); "
           "hauberk.fit(narrow, data.train, loss=mid(beta=0.01))"),
)


@dataclasses.dataclass(frozen=True)
class Split:
    """One place to split the model at, and what came back from there.

    Arguments:
        layer: whose output is seen.
        width: numbers in it.
        level: closeness of each input in dB, (n,).
        back: whether it came back, (n,).
        x: what came back, (n, ...).
        ways: attacks tried.
    """

    layer: str
    width: int
    level: Tensor
    back: Tensor
    x: Tensor
    ways: str


class Scaled(nn.Module):
    """A model of tables whose columns are brought to mean 0 and deviation 1."""

    def __init__(self, module: nn.Module, known: Tensor) -> None:
        super().__init__()
        self.module, self.middle = module, known.mean(0)
        spread = known.std(0)
        self.spread = torch.where(spread > 0, spread, torch.ones_like(spread))

    def scaled(self, x: Tensor) -> Tensor:
        """Return rows of scaled columns."""
        return (x - self.middle) / self.spread

    def raw(self, x: Tensor) -> Tensor:
        """Return rows as the model takes them."""
        return x * self.spread + self.middle

    def forward(self, x: Tensor) -> Tensor:
        """Return what the model answers to rows of scaled columns."""
        answer: Tensor = self.module(self.raw(x))
        return answer


@check(
    "privacy/split-inversion", pillar="privacy", unit="rate", better="lower", access=Access.GRADIENT, tags=TAGS,
    preset="standard", question="Where the model is split between two machines, does what is sent hand over the input?",
    advice=ADVICE, paper="He et al. 2019, ACSAC; Mahendran and Vedaldi 2015, arXiv:1412.0035",
)
def split_inversion(context: Context) -> Finding:
    """Share of inputs that come back from the last inner layer, the best place to split; earlier places beside it."""
    context.need_classes()
    kind = context.data.modality
    if kind not in RECOGNISED or not context.data.test.x.take(torch.arange(1)).is_floating_point():
        raise NotRun(f"the data is {kind}, neither images nor tables of numbers")
    module = widened(context.target.module)  # no decoder learns in half precision
    private, auxiliary = _sides(context, module)
    try:
        chosen = places(module, private[:2])[-context.settings.scaled(1, 3, 3) :]
    except (HauberkError, RuntimeError, AttributeError, TypeError) as error:
        raise NotRun(f"the layers of the model cannot be looked into ({str(error).splitlines()[0][:160]})") from error
    if not chosen:
        raise NotRun("no layer between the first and the last that have weights holds all that the rest needs: nowhere to split")
    guesses = _guesses(context, private, auxiliary)
    tried = [one for layer in chosen if (one := _attack(context, layer, private, auxiliary, guesses)) is not None]
    if not tried or tried[-1].layer != chosen[-1]:
        raise NotRun(
            f"inputs of {private[0].numel()} numbers are beyond the budget of the preset '{context.settings.preset}': search "
            "from Python (hauberk.privacy.model_inversion.feature_inversion)"
        )
    last, n = tried[-1], len(private)
    hits = int(last.back.sum())
    interval = wilson(hits, n)
    context.note(
        f"an input counts as come back at {RECOGNISED[kind]:g} dB ({_of(kind)}), and {NEARER:g} dB nearer than the best guess "
        "without its features: the mean, the middle of the range, the mean of its predicted class (at most "
        f"{max(guesses):.1f} dB)"
    )
    context.note(f"a decoder trained on {len(auxiliary)} test samples; one with more, or a longer search, wins back no less")
    if len(tried) > 1:
        context.note("of the inputs come back from earlier layers: " + ", ".join(
            f"{float(one.back.double().mean()):.0%} from '{one.layer}'" for one in tried[:-1]
        ))
    evidence: list[Evidence] = [Table(
        "By the layer at which the model is split", ("layer", "numbers sent", "came back", "95 % interval", "mean closeness, dB",
                                                     "SSIM", "attack"),
        [_row(one, private, context) for one in tried] + [_blind_row(guesses, private)],
    )]
    if kind == "image":
        evidence.append(_gallery(tried, private, context))
    return context.finding(
        f"split at its last inner layer, '{last.layer}', the model hands over {hits} of {n} inputs; from its first, "
        f"'{tried[0].layer}', {int(tried[0].back.sum())}",
        value=hits / n, n=n, interval=interval, threat=THREAT, evidence=evidence,
        status=Status.WARN if interval.low > 0.01 else Status.PASS,
    )


def places(module: nn.Module, x: Tensor) -> list[str]:
    """Return up to three layers at whose output a model can be split: the first, one in the middle, and the last.

    A layer is a place to split where its output is all that the rest needs: with another input's output put in, the model gives
    that input's answer. A branch beside others is none. Layers with weights lie before and behind.

    Arguments:
        x: two inputs that differ, shape (2, ...).
    """
    other = x.flip(0)
    groups: list[list[str]] = [[]]  # names of modules by how many layers with weights had run when they were done
    names = {part: name for name, part in module.named_modules() if name}

    def note(part: nn.Module, _inputs: object, output: object) -> None:
        if any(True for _ in part.parameters(recurse=False)):
            groups.append([])
        if isinstance(output, Tensor) and output.is_floating_point() and output.ndim > 1 and len(output) == len(x):
            groups[-1].append(names[part])

    with _hooked([part.register_forward_hook(note) for part in names]), torch.no_grad(), evaluating(module):
        want = module(other)
    ran = [name for group in groups for name in group]
    inner = [[name for name in reversed(group) if ran.count(name) == 1] for group in groups[1:-1]]

    tested: dict[int, str | None] = {}

    def cut(k: int) -> str | None:
        if k not in tested:
            tested[k] = next((name for name in inner[k] if _all_that_is_needed(module, name, x, other, want)), None)
        return tested[k]

    middle = len(inner) // 2
    for order in (range(len(inner)), range(len(inner) - 1, -1, -1), sorted(range(len(inner)), key=lambda k: abs(k - middle))):
        next((k for k in order if cut(k)), None)
    return [name for _, name in sorted(tested.items()) if name]


def _all_that_is_needed(module: nn.Module, name: str, x: Tensor, other: Tensor, want: Tensor) -> bool:
    """Whether the model, asked about x with the layer's output for `other` put in, gives the answer to `other`."""
    with torch.no_grad(), evaluating(module):
        given = features_at(module, other, name)
        part = dict(module.named_modules())[name]
        with _hooked([part.register_forward_hook(lambda *_: given)]):
            answer = module(x)
    return torch.allclose(answer, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


@contextlib.contextmanager
def _hooked(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _sides(context: Context, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the inputs to win back and the adversary's own, from the test split; no input is on both sides."""
    test = context.data.test
    n = min(context.settings.scaled(20, 50, 200), len(test) // 3)
    if n < FEW:
        raise NotRun(f"there are {len(test)} test samples; at least {3 * FEW} are needed")
    order = torch.randperm(len(test), generator=generator(context.seed, "split inversion"))
    private = test.x.take(order[:n].sort().values)
    auxiliary = test.x.take(order[n : n + context.settings.scaled(200, 1000, 5000)].sort().values)
    kept = auxiliary[~torch.isin(fingerprints(auxiliary), fingerprints(private))]
    if len(kept) < REHEARSED + FEW:
        raise NotRun(f"{len(kept)} test samples are left for the adversary; at least {REHEARSED + FEW} are needed")
    place = next(module.parameters(), private)
    return private.to(place), kept.to(place)


def _guesses(context: Context, private: Tensor, auxiliary: Tensor) -> list[float]:
    """Return how near the best guess without the features comes to each input, in dB."""
    low, high = scalar_bounds(context.data.bounds)
    middle = auxiliary.mean(0)
    guesses = [middle.expand_as(private), torch.full_like(private, (low + high) / 2)]
    said, own = context.target.labels(auxiliary), context.target.labels(private)
    by_class = {int(k): auxiliary[said == k].mean(0) for k in said.unique()}
    guesses.append(torch.stack([by_class.get(int(k), middle) for k in own]))
    return torch.stack([_level(context, one, private, auxiliary) for one in guesses]).amax(0).tolist()


def _level(context: Context, found: Tensor, private: Tensor, auxiliary: Tensor) -> Tensor:
    """Return closeness in dB: PSNR of images; of tables with the deviation of each column as the range."""
    if context.data.modality == "image":
        return psnr(found, private, bounds=context.data.bounds).clamp(max=200).double().cpu()
    spread = auxiliary.double().std(0)
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    error = ((found.double() - private.double()) / spread).square().flatten(1).mean(1)
    return (-10 * error.clamp_min(1e-20).log10()).cpu()


def _attack(context: Context, layer: str, private: Tensor, auxiliary: Tensor, guesses: list[float]) -> Split | None:
    found = context.shared(
        ("split inversion", layer), lambda target: _invert(target, context, layer, private, auxiliary)
    )
    if found is None:
        return None
    made, ways, width = found
    level = _level(context, made.x, private, auxiliary)
    back = (level >= RECOGNISED[context.data.modality]) & (level >= torch.tensor(guesses) + NEARER)
    return Split(layer, width, level, back, made.x, ways)


def _invert(
    target: Target, context: Context, layer: str, private: Tensor, auxiliary: Tensor
) -> tuple[Reconstruction, str, int] | None:
    """Return what comes back by the attack that does better on inputs of the adversary's own, which the decoder never saw."""
    module, settings, called = widened(target.module), context.settings, layer
    bounds: tuple[float, float] | None = scalar_bounds(context.data.bounds)
    scale = Scaled(module, auxiliary) if context.data.modality == "tabular" else None
    if scale is not None:  # else the widest column is all that counts in a squared error
        module, layer, bounds = scale, f"module.{layer}", None
        private, auxiliary = scale.scaled(private), scale.scaled(auxiliary)
    known, own = auxiliary[REHEARSED:], auxiliary[:REHEARSED]
    features = features_at(module, torch.cat([private, own]), layer)
    width, steps = features[0].numel(), settings.scaled(0, 100, 400)
    options: dict[str, Any] = {"layer": layer, "bounds": bounds}
    tries: dict[str, Tensor] = {}
    cost = 3 * operations(module, private) * len(features)
    room = settings.scaled(10**9, 2 * 10**11, 2 * 10**13)
    seed = derive_seed(context.seed, "split inversion", layer)
    shape, epochs = tuple(private.shape[1:]), settings.scaled(0, 10, 30)
    attacks: dict[str, Callable[[], Reconstruction]] = {}
    if width * private[0].numel() <= MAP and cost * 10 <= room:
        attacks["decoder"] = lambda: decoder_inversion(module, features, auxiliary=known, epochs=epochs, seed=seed, **options)
    if steps and cost * steps <= room:
        attacks["search"] = lambda: feature_inversion(module, features, shape=shape, steps=steps, seed=seed, **options)
    for name, attack in attacks.items():
        try:
            tries[name] = attack().x
        except (DataError, ModelError, UsageError, RuntimeError) as error:  # a step without a gradient stops the search alone
            context.note(f"{name} at '{called}' was left out: {str(error).splitlines()[0][:160]}")
    if not tries:
        return None
    rehearsed = {name: -float((x[len(private) :] - own).square().mean()) for name, x in tries.items()}
    best = max(rehearsed, key=lambda name: rehearsed[name])
    told = best if len(tries) < 2 else f"{best}, the better of {' and '.join(tries)} on inputs of its own"
    made = tries[best][: len(private)]
    return Reconstruction(made if scale is None else scale.raw(made)), told, width


def _of(kind: str) -> str:
    return "PSNR" if kind == "image" else "of the deviation of each column: a tenth of its variance is left"


def _row(one: Split, private: Tensor, context: Context) -> tuple[object, ...]:
    hits, n = int(one.back.sum()), len(one.back)
    span, level = wilson(hits, n), mean_interval(one.level.numpy())
    alike = "–"
    if context.data.modality == "image" and min(private.shape[-2:]) >= 3:
        alike = f"{float(ssim(one.x, private, bounds=context.data.bounds).mean()):.2f}"
    return (
        one.layer, one.width, f"{hits} of {n}", f"{span.low:.0%} to {span.high:.0%}",
        f"{float(one.level.mean()):.1f} [{level.low:.1f}, {level.high:.1f}]", alike, one.ways,
    )


def _blind_row(guesses: list[float], private: Tensor) -> tuple[object, ...]:
    level = mean_interval(guesses)
    return ("none: the best guess", 0, f"0 of {len(private)}", "", f"{sum(guesses) / len(guesses):.1f} "
            f"[{level.low:.1f}, {level.high:.1f}]", "", "mean, middle, mean of the predicted class")


def _gallery(tried: list[Split], private: Tensor, context: Context, most: int = 4) -> Gallery:
    pictures = []
    for k in range(min(most, len(private))):
        pictures.append(picture(private[k], "input", bounds=context.data.bounds))
        pictures += [picture(one.x[k], f"from '{one.layer}', {float(one.level[k]):.0f} dB", bounds=context.data.bounds)
                     for one in tried]
    return Gallery("Inputs and what came back from each layer", pictures)
