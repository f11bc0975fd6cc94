"""The remedies: what the signs call for, applied, and what it brings to light."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.card import registry
from hauberk.core.errors import ModelError
from hauberk.core.stats import wilson
from hauberk.core.taps import penultimate
from hauberk.robustness.attack.eot_pgd import eot_pgd
from hauberk.robustness.attack.hop_skip_jump import hop_skip_jump
from hauberk.robustness.attack.pgd import pgd
from hauberk.robustness.attack.square import square
from hauberk.robustness.attack.transfer import transfer
from hauberk.robustness.diagnose.active import NAME as MISSED
from hauberk.robustness.diagnose.alarm import Alarm, Treatment
from hauberk.robustness.diagnose.case import Case
from hauberk.robustness.diagnose.fault import locate, passed_by

_MOST_DRAWS, _PILOT, _ERROR, _FAULTS = 64, 16, 0.1, 3
_SCALE = {"gradients are exactly zero", "outputs are probabilities", "margin loss beats cross-entropy"}
_MASKED = {
    "gradients are exactly zero", "a step gains what the gradient promises", "one step beats many", "noise beats gradients",
    "success with an unbounded radius", "black box beats white box", "transfer beats white box", MISSED,
}
Finder = Callable[[Case], Tensor]
Patch = Callable[[], contextlib.AbstractContextManager[None]]


class _Course:
    """The remedies one by one, on the samples that the plain attack left."""

    def __init__(self, case: Case, plain: Tensor, n: int) -> None:
        self.case, self.plain, self.n = case, plain, n
        self.left = (~plain).nonzero()[:, 0]
        self.fallen, self.treatments = plain.clone(), list[Treatment]()

    def apply(self, name: str, detail: str, attack: Finder, patch: Sequence[Patch] = ()) -> None:
        """Send the attack, found with the model patched; whether it wins is asked of the model as it is."""
        hits = torch.zeros_like(self.plain)
        if len(self.left):
            part = self.case.at(self.left)
            with contextlib.ExitStack() as stack:
                for one in patch:
                    stack.enter_context(one())
                z = attack(part)
            hits[self.left] = part.broken(z)
        self.fallen |= hits
        held = int((~(self.plain | hits)).sum())
        self.treatments.append(Treatment(name, detail, held / self.n, wilson(held, self.n), int(hits.sum()), self.n))


def treat(case: Case, alarms: Sequence[Alarm], plain: Tensor, n: int) -> tuple[list[Treatment], Tensor]:
    """Apply the remedies that the signs call for; all that pass the gradient on are kept for those that follow.

    Arguments:
        case: the samples that are right.
        alarms: what was seen on them.
        plain: which of them the plain attack breaks, shape (n,).
        n: all samples, those that are wrong undisturbed included.

    Returns:
        The treatments, and which samples the plain attack or any of them breaks. Nothing is applied where no sign speaks.
    """
    spoken = {alarm.name for alarm in alarms if alarm.level in ("warn", "raised")}
    course = _Course(case, plain, n)
    if not spoken:
        return [], plain
    course.apply("margin loss, more steps and starts", f"two starts of {5 * case.search.steps} steps", _climbed(1, ("margin",)))
    draws, patches = 1, list[Patch]()
    if case.asks > 1:
        draws, detail = _draws(case)
        course.apply("gradients averaged over draws (EOT)", detail, _climbed(draws, ("margin",)))
        still = [part for part in case.view.module.modules() if part.training]
        if still and not case.view.module.training:
            patches.append(lambda: _switched_off(still))
            detail = f"{len(still)} were left in training mode; what is broken is asked of the model as it was given"
            course.apply("all parts in evaluation mode", detail, _climbed(1, ("margin",)), patches)
            draws = 1
    if spoken & _SCALE:
        scale = _Scale(case)
        patches.append(scale.unit)
        course.apply("logits rescaled to a median margin of 1", scale.detail, _climbed(draws), patches)
    if spoken & _MASKED:
        with contextlib.ExitStack() as bridges:
            told = _bridged(case, bridges)
            if told:
                course.apply("gradients led past the part at fault (BPDA)", "; ".join(told), _climbed(draws), patches)
    _without_gradients(course)
    return course.treatments, course.fallen


def _climbed(draws: int, losses: Sequence[str] = ("margin", "ce")) -> Finder:
    """Return PGD on each loss from two starts, on what is not broken yet; averaged over so many draws where the model draws."""

    def attack(part: Case) -> Tensor:
        best, left = part.x.clone(), torch.arange(len(part), device=part.x.device)
        for number, loss in enumerate(one for one in losses for _ in range(2)):
            if not len(left):
                break
            here, seed, steps = part.at(left), rng.derive_seed(part.seed, "treatment", number), part.search.steps
            if draws > 1:
                z = eot_pgd(part.view, here.x, here.y, here.threat, steps=2 * steps, answers=draws, loss=loss, seed=seed)
            else:
                z = pgd(part.view, here.x, here.y, here.threat, steps=5 * steps, loss=loss, seed=seed)
            best[left] = z
            left = left[~here.broken(z)]
        return best

    return attack


def _draws(case: Case) -> tuple[int, str]:
    """Return how many answers must be averaged until the standard error of a logit is small beside the margins."""
    answers = torch.stack([case.view.logits(case.x) for _ in range(_PILOT)]).double()
    spread = float(answers.var(0).mean().sqrt())
    margin = float(case.threat.margin(answers.mean(0), case.y).abs().median())
    need = math.ceil((spread / max(_ERROR * margin, 1e-12)) ** 2)
    draws = min(max(need, 2), _MOST_DRAWS)
    error = spread / math.sqrt(draws) / max(margin, 1e-12)
    return draws, f"{draws} draws: the standard error of a logit is then {error:.0%} of the median margin, by {_PILOT} answers"


def _bridged(case: Case, bridges: contextlib.ExitStack) -> list[str]:
    """Lead gradients past every part that hides them, as long as the block that owns `bridges` runs; return how."""
    told: list[str] = []
    after = None
    for _ in range(_FAULTS):
        fault = locate(case, after)
        if fault is None:
            break
        told.append(bridges.enter_context(passed_by(case, fault)))
        after = fault.end
    return told


@contextlib.contextmanager
def _switched_off(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Put these parts in evaluation mode for the block."""
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True


class _Scale:
    """Logits as the loss needs them: of the last linear layer where they decide the label, over their median margin."""

    def __init__(self, case: Case) -> None:
        self.case, self.module = case, case.view.module
        self.layer, name = self.module, ""
        with contextlib.suppress(ModelError):
            name = penultimate(self.module)
            self.layer = dict(self.module.named_modules())[name]
        ball = case.threat.around(case.x)
        z = torch.cat([case.x, ball.random_start(rng.generator(case.seed, "scale", device=case.x.device))])
        own, logits = self._read(z)
        if own is None:  # not what decides
            self.layer, name, own = self.module, "", logits
        top = own.topk(2, dim=1).values if own.shape[1] > 1 else torch.cat([own.abs(), torch.zeros_like(own)], 1)
        self.scale = max(float((top[:, 0] - top[:, 1]).median()), 1e-12)
        self.detail = (f"the answers of '{name}'" if name else "the model's logits") + f" over {self.scale:.3g}"

    def _read(self, z: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the layer's answers to z where they give the same labels as the model's logits, and the logits."""
        kept: list[Tensor] = []
        handle = self.layer.register_forward_hook(lambda _, inputs, output: kept.append(output))
        try:
            with rng.isolated(self.case.seed, z.device):
                logits = self.case.view.logits(z)
        finally:
            handle.remove()
        rows = [one.detach().to(z.device) for one in kept if isinstance(one, Tensor) and one.ndim == 2]
        own = torch.cat(rows) if rows else None
        if self.layer is self.module or own is None or len(own) != len(z) or own.shape[1] not in (1, logits.shape[1]):
            return None, logits
        if own.shape[1] == 1 and logits.shape[1] != 2:
            return None, logits
        labels = own.argmax(1) if own.shape[1] > 1 else (own[:, 0] > 0).long()
        return (own if bool((labels == logits.argmax(1)).double().mean() > 0.99) else None), logits

    @contextlib.contextmanager
    def unit(self) -> Iterator[None]:
        """Let the model answer with those logits over the scale, for the block."""
        kept: list[Tensor] = []

        def keep(_: nn.Module, inputs: object, output: Tensor) -> None:
            kept[:] = [output]

        def answer(_: nn.Module, inputs: object, output: Tensor) -> Tensor:
            probable, own = self.case.view.outputs == "probabilities", kept[0]
            if self.layer is self.module:
                tiny = torch.finfo(own.dtype).tiny
                wide = own.shape[1:] and own.shape[-1] > 1
                own = own if not probable else own.clamp(min=tiny).log() if wide else own.logit(eps=1e-30)
            own = own / self.scale
            if not probable:
                return own.view_as(output)
            return (own.softmax(1) if own.ndim > 1 and own.shape[1] > 1 else own.sigmoid()).view_as(output)

        handles = [self.layer.register_forward_hook(keep), self.module.register_forward_hook(answer)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _without_gradients(course: _Course) -> None:
    """Search by scores, by labels where scores are deaf, and through a model of our own."""
    case, seed = course.case, rng.derive_seed(course.case.seed, "without gradients")
    effort = {"queries": 5 * case.search.queries, "seed": seed}
    asked = f"{5 * case.search.queries} queries per sample"
    if case.threat.norm in registry.get("square", "attack").facts["norms"]:
        course.apply(
            "random search by scores (Square)", asked, lambda part: square(part.view, part.x, part.y, part.threat, **effort)
        )
    if case.threat.norm in registry.get("hop-skip-jump", "attack").facts["norms"] and _deaf(case):
        course.apply(
            "search by labels (HopSkipJump)", f"the scores do not move; {asked}",
            lambda part: hop_skip_jump(part.view, part.x, part.y, part.threat, **effort),
        )
    course.apply(
        "transfer from a substitute", f"trained on the labels of {len(case)} samples and their neighbours",
        lambda part: transfer(part.view, part.x, part.y, part.threat, data=case.x, rounds=1, epochs=10, seed=seed),
    )


def _deaf(case: Case) -> bool:
    """Whether the scores of most samples stay the same all over the ball."""
    ball, noise = case.threat.around(case.x), rng.generator(case.seed, "deaf", device=case.x.device)
    first = case.threat.margin(case.view.logits(case.x), case.y)
    moved = torch.zeros_like(case.y, dtype=torch.bool)
    for _ in range(4):
        moved |= case.threat.margin(case.view.logits(ball.random_start(noise)), case.y) != first
    return 2 * int(moved.sum()) < len(case)
