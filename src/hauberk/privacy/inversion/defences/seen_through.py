"""What an adversary who knows a defence and its strength (Kerckhoffs's principle) learns from a gradient that went through it.

The Bayes-optimal adversary matches under the likelihood of what was sent given the true gradient (Balunović et al. 2022,
arXiv:2111.04706): entries that a defence cut out say nothing, noise has a known size, a clipped gradient keeps its direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hauberk.privacy.inversion.client import ClientUpdate
from hauberk.privacy.inversion.defences.clip import norm_of
from hauberk.privacy.inversion.defences.precode import Bottleneck
from hauberk.privacy.inversion.first_linear import first_linear, first_linear_layer
from hauberk.privacy.inversion.known import Known


def seen_through(name: str, strength: float, sent: ClientUpdate, module: nn.Module) -> Known | None:
    """Return what is known of a defended update; None where knowing the defence adds nothing.

    Arguments:
        name: of the defence.
        strength: of it.
        sent: the update as it was received.
        module: the model that was sent to the client.
    """
    gradients = sent.gradients
    if strength == 0 and name != "private":  # which clips nevertheless
        return None
    if name in ("precode", "mid"):
        return _drawn(sent, module)
    if name == "prune":
        kept = {key: one != 0 for key, one in gradients.items() if _was_cut(one, strength)}
        return Known(kept=kept) if kept else None
    if name == "top-k":
        whole = torch.cat([one.flatten() for one in gradients.values()])
        return Known(kept={key: one != 0 for key, one in gradients.items()}) if _was_cut(whole, strength) else None
    if name == "soteria":
        layer = first_linear(module)
        key = f"{layer}.weight" if layer else "weight"
        cut = ~gradients[key].any(0)
        return Known(kept={key: (~cut).expand_as(gradients[key])}) if bool(cut.any()) else None
    if name in ("gaussian-noise", "laplace-noise"):
        count = sum(one.numel() for one in gradients.values())
        # The noise is in what was sent too: its energy is 1 + strength² times that of the gradient.
        sigma = strength * norm_of(gradients) / math.sqrt(max(count, 1) * (1 + strength * strength))
        return Known(noise=dict.fromkeys(gradients, sigma))
    if name == "quantise":
        return Known(noise={key: _rounding(one, strength) for key, one in gradients.items()})
    if name == "private":
        rows = sent.n if sent.local is None else 1
        return Known(noise=dict.fromkeys(gradients, strength / rows) if strength else {}, scaled=True)
    if name == "clip":
        return Known(scaled=True) if norm_of(gradients) * strength > 1 - 1e-4 else None
    return None


def _was_cut(values: Tensor, share: float) -> bool:
    """Whether entries other than zeros may have been set to zero: with more zeros than were cut, those cut were zeros before."""
    cut = int(share * values.numel())
    return cut > 0 and int((values == 0).sum()) <= cut


def _rounding(values: Tensor, strength: float) -> float:
    """Return the standard deviation that random rounding added: of a uniform place between two levels, at most all there is."""
    size = values.double().abs()
    levels = size[size > 0]
    if not len(levels):
        return 0.0
    # The largest entry lies next to 1 / strength levels; the smallest that is not zero is a whole number of steps.
    step = min(float(levels.min()), float(levels.max()) / max(1, math.floor(1 / strength)))
    return min(step / math.sqrt(6), float(size.square().mean().sqrt()))


def _drawn(sent: ClientUpdate, module: nn.Module) -> Known | None:
    """Return the draw of each bottleneck, read off the gradient of one sample; else leave out what depends on the draws most.

    The input of a linear layer stands in its gradient (`first_linear_layer`): that of the encoder gives mean and spread, that of
    the decoder the code. Of a batch, the gradients of the bottleneck and of what follows are left out (Scheliga et al. 2022,
    arXiv:2208.04767), and the code is taken at its mean.
    """
    parts = {name: part for name, part in module.named_modules() if isinstance(part, Bottleneck) and part.strength > 0}
    if not parts:
        return None
    draws: dict[str, Tensor] = {}
    for name, part in parts.items() if sent.n == 1 and sent.local is None else ():
        entered, code = (first_linear_layer(module, sent.gradients, layer=f"{name}.{side}").x for side in ("encode", "decode"))
        with torch.no_grad():
            mean, spread = part.encode(entered.to(part.encode.weight)).double().chunk(2, 1)
        draw = (code - mean) / (part.strength * (spread / 2).exp())
        if bool(draw.isfinite().all()):
            draws[name] = draw
    if len(draws) == len(parts):
        return Known(draws=draws)
    names = list(sent.gradients)
    first = min(k for k, key in enumerate(names) for name in parts if key.startswith(f"{name}."))
    kept = {key: torch.zeros_like(sent.gradients[key], dtype=torch.bool) for key in names[first:]}
    still = {name: torch.zeros(sent.n, part.decode.in_features, device=part.decode.weight.device) for name, part in parts.items()}
    return Known(kept=kept if first else {}, draws=still)


def unmixed(x: Tensor, soft: Tensor) -> Tensor:
    """Return the samples behind blends whose label probabilities are known, shape of x, where every label is another; else x.

    Blends are the combinations of samples that their label probabilities are of labels. Labels that differ tell the weights, and
    the blends are solved for the samples, as far as the weights are apart (singular values below .2 of the largest are left).

    Arguments:
        x: blends, shape (n, ...).
        soft: label probabilities, shape (n, classes).
    """
    present = soft.sum(0) > 1e-6
    if int(present.sum()) != len(x):
        return x
    weights = soft[:, present].double()  # (n, n): of the sample of each label in each blend
    return (torch.linalg.pinv(weights, rtol=0.2) @ x.double().flatten(1)).reshape(x.shape).to(x)


