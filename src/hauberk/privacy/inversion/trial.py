"""One attack on what several clients send, with or without a defence, judged against the truth."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError, UsageError, nearest
from hauberk.core.kinds import Reconstruction
from hauberk.core.rng import generator, normal
from hauberk.privacy.inversion.client import ClientUpdate, LocalSteps, client_update
from hauberk.privacy.inversion.defences import DEFENCES, Bottleneck, mixup, private, soteria
from hauberk.privacy.inversion.defences.precode import drawing
from hauberk.privacy.inversion.defences.seen_through import seen_through, unmixed
from hauberk.privacy.inversion.dlg import dlg
from hauberk.privacy.inversion.labels import width_of
from hauberk.privacy.inversion.metrics import Closeness, closeness

# Those that do not act on gradients alone, with the strength that is usual: what it is stands with each.
OTHERS = {"soteria": 0.5, "mixup": 1.0, "precode": 1.0, "mid": 1e-3}
NAMES = (*DEFENCES, *OTHERS)
ADVERSARIES = {
    "adaptive": "knows the defence and its strength",
    "naive": "takes what was sent as if it were plain",
    "any": "whether it knows of a defence changes nothing for it",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """What an attack won back.

    Arguments:
        x, y: the clients' samples, shape (n, ...), and labels, shape (n,).
        found: the reconstructions, in the order of the attack.
        close: each sample beside its reconstruction.
        adversary: `adaptive` for one who knows the defence and its strength, `naive` for one who takes what was sent as plain,
            `any` where knowing adds nothing.
        naive: beside the trial of an adaptive adversary, that of the naive one.
    """

    x: Tensor
    y: Tensor
    found: Reconstruction
    close: Closeness
    adversary: str = "any"
    naive: Trial | None = None

    @property
    def matched(self) -> Tensor:
        """The reconstructions in the order of the samples, shape (n, ...)."""
        return self.found.x.reshape(self.x.shape)[self.close.order]

    @property
    def stronger(self) -> Trial:
        """Of the adaptive and the naive trial the one of the higher mean PSNR: what a defence withstands, at the most."""
        if self.naive is None or float(self.close.psnr.mean()) >= float(self.naive.close.psnr.mean()):
            return self
        return self.naive


def attempt(
    module: nn.Module, x: Tensor, y: Tensor, attack: Callable[..., Reconstruction], *, defence: str = "", group: int = 1,
    local: LocalSteps | None = None, options: Mapping[str, Any] | None = None,
) -> Trial:
    """Let every `group` samples be one client's, defend what each sends, attack it, and compare. Works on a copy of the module.

    A defence is attacked twice, by an adversary who knows it and its strength and by one who does not: the trial returned is the
    former's, and holds the latter's. Where knowing adds nothing there is one attack.

    Arguments:
        module: the model; returns one logit per class. For `precode` and `mid` it holds their bottleneck (`insert_bottleneck`).
        x, y: samples (n, ...) within [0, 1] or any bounds given in `options`, and labels (n,).
        attack: of those that take a `ClientUpdate`.
        defence: `NAME` or `NAME=STRENGTH`; empty for none.
        group: samples of one client; `mixup` needs two.
        local: how clients train before they send.
        options: of the attack; `seed` is the defence's too, `bounds` that of the data, and `adaptive` False leaves the adversary
            who knows the defence out.

    Raises:
        UsageError: for a defence that is not known or does not fit, or a group that does not divide n.
        DataError: for samples that the model does not take.
        ModelError: for a model whose parameters cannot be differentiated.
    """
    given = dict(options or {})
    bounds, adaptive, seed = given.pop("bounds", (0.0, 1.0)), bool(given.pop("adaptive", True)), int(given.pop("seed", 0))
    if group < 1 or not len(x) or len(x) % group:
        raise UsageError(f"{len(x)} samples are shared out by {group}", want="a batch size that divides the number of samples")
    name, strength = parse(defence)
    twin = copy.deepcopy(module)
    if not any(one.is_floating_point() for one in twin.parameters()):
        raise ModelError("the model has no parameters of floating point", want="a model that can be trained")
    twin.requires_grad_(True)
    _refuse_unfit(twin, name, strength, group)
    sent, blends = [], []
    for client, first in enumerate(range(0, len(x), group)):
        samples = x[first : first + group], y[first : first + group]
        drawn = generator(seed, "defence", client)
        if name == "mixup":
            samples = mixup(*samples, width_of(twin), strength=strength, generator=drawn)
            blends.append(samples[1])
        with drawing(twin, _draws(twin, group, drawn) if local is None else {}):
            plain = client_update(twin, *samples, local=local, bounds=bounds)
        sent.append(_defended(twin, samples, plain, name, strength, drawn))

    def trial(updates: list[ClientUpdate], adversary: str) -> Trial:
        found = _found(twin, x, y, updates, group, attack, {**given, "seed": seed})
        if adversary == "adaptive" and blends:
            parts = [unmixed(part, soft) for part, soft in zip(found.x.reshape(x.shape).split(group), blends, strict=True)]
            low, high = bounds or (-math.inf, math.inf)
            found = dataclasses.replace(found, x=torch.cat(parts).clamp(low, high))
        close = closeness(twin, x, found, y=y, bounds=bounds or (0.0, 1.0), group=group)
        return Trial(x, y, found, close, adversary)

    if not adaptive or not name:
        return trial(sent, "naive" if name else "any")
    known = _knowing(twin, sent, name, strength, blends, attack is dlg)
    if known is None:
        return trial(sent, "any")
    return dataclasses.replace(trial(known, "adaptive"), naive=trial(sent, "naive"))


def parse(defence: str) -> tuple[str, float]:
    """Return name and strength of `NAME` or `NAME=STRENGTH`; no name for an empty text.

    Raises:
        UsageError: for a name that is not known, or a strength that is no number.
    """
    if not defence:
        return "", 0.0
    name, given, text = defence.partition("=")
    if name not in NAMES:
        raise UsageError(f"there is no defence '{name}'", fix=nearest(name, list(NAMES)))
    try:
        strength = float(text) if given else (OTHERS[name] if name in OTHERS else DEFENCES[name][2])
    except ValueError as error:
        raise UsageError(f"the strength of the defence is '{text}'", want="a number, as in prune=0.9") from error
    if not 0 <= strength < math.inf:
        raise UsageError(f"the strength of the defence is {strength}", want="0 or more")
    return name, strength


def _refuse_unfit(module: nn.Module, name: str, strength: float, group: int) -> None:
    if name == "mixup" and group < 2:
        raise UsageError("mixup blends a client's samples, and each has one", want="a batch of at least 2", fix="Use --batch 2")
    if name not in ("precode", "mid"):
        return
    parts = [part for part in module.modules() if isinstance(part, Bottleneck)]
    if not parts:
        raise UsageError(f"the model has no bottleneck for {name}", want="a model made by insert_bottleneck, or trained with one")
    for part in parts:
        part.strength = strength if name == "precode" else 1.0


def _draws(module: nn.Module, n: int, drawn: torch.Generator) -> dict[str, Tensor]:
    """Return what each bottleneck draws for a client's samples."""
    return {
        name: normal(part.decode.weight.new_empty(n, part.decode.in_features), drawn)
        for name, part in module.named_modules() if isinstance(part, Bottleneck)
    }


def _knowing(
    module: nn.Module, sent: list[ClientUpdate], name: str, strength: float, blends: list[Tensor], scale: bool
) -> list[ClientUpdate] | None:
    """Return the updates with what is known of each; None where that changes nothing, as the scale for a match of directions."""
    if name == "mixup":  # labels are known to the adversary, and so the blended ones
        plain = strength == 0
        return None if plain else [dataclasses.replace(one, labels=soft) for one, soft in zip(sent, blends, strict=True)]
    known = [seen_through(name, strength, one, module) for one in sent]
    if not any(one.kept or one.noise or one.draws or scale for one in known if one is not None):
        return None
    return [dataclasses.replace(one, known=told) for one, told in zip(sent, known, strict=True)]


def _found(
    module: nn.Module, x: Tensor, y: Tensor, sent: list[ClientUpdate], group: int, attack: Callable[..., Reconstruction],
    given: dict[str, Any],
) -> Reconstruction:
    """Return what the attack makes of the updates; one that is zero to the last bit tells nothing, and counts as gray."""
    told = [any(bool(one.any()) for one in update.gradients.values()) for update in sent]
    if all(told):
        return attack(module, sent, **given)
    bounds = sent[0].bounds
    found = torch.full_like(x, 0.0 if bounds is None else (bounds[0] + bounds[1]) / 2)
    loss = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    if any(told):
        made = attack(module, [update for update, live in zip(sent, told, strict=True) if live], **given)
        rows = torch.tensor(told, device=x.device).repeat_interleave(group)
        found[rows] = made.x.reshape(-1, *x.shape[1:]).to(found)
        loss[rows] = loss[rows] if made.loss is None else made.loss.to(loss)
    return Reconstruction(found, y, loss)


def _defended(
    module: nn.Module, samples: tuple[Tensor, Tensor], update: ClientUpdate, name: str, strength: float, drawn: torch.Generator
) -> ClientUpdate:
    if name == "soteria":
        changed = soteria(update.gradients, strength, module=module, x=samples[0])
    elif name == "private" and update.local is None:
        # The samples of a batch are clipped one by one; an update of several steps as one, which protects the client.
        rows = [client_update(module, *(one[k : k + 1] for one in samples)).gradients for k in range(update.n)]
        changed = private(rows, strength, generator=drawn)
    elif name in DEFENCES:
        changed = DEFENCES[name][0](update.gradients, strength, generator=drawn)
    else:  # none, or one of the model or the batch
        return update
    return dataclasses.replace(update, gradients=changed)


def scalar_bounds(bounds: tuple[Any, Any]) -> tuple[float, float]:
    """Return the lowest and the highest of bounds that may be one per feature."""
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in bounds)
    return float(low.min()), float(high.max())
