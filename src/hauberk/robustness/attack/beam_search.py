"""Beam search for L0: the few best ways to change k features are where those to change one more begin."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.linear import opening
from hauberk.robustness.attack.nearest import Nearest

_SAME = 1e-9  # two sets of features whose sums of random numbers are nearer are one


@attack(
    question="How few features have to change for a wrong answer, chosen one by one with the next best kept in hand?",
    access=Access.GRADIENT,
    paper="after Papernot et al. 2016, arXiv:1511.07528, and Hajri et al. 2020, arXiv:2011.12423",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l0",),
    minimum_norm=True,
)
def beam_search(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 50, width: int = 5, tries: int = 20,
    rivals: int = 9,
) -> Tensor:
    """Change one feature more a step, to an end of its range, and keep the few sets of features of the lowest margin.

    A step costs a sample `width` gradients, and `width` times `tries` queries; the first has one set alone. A sample leaves when
    no step could bring fewer changes. Where few features are enough, it costs less than descents do, and finds fewer.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L0, any goal; `eps` is the most features that count, `math.inf` gives the fewest found.
        steps: features changed at most.
        width: sets of features that are kept; 1 is greedy.
        tries: features asked about for each of them, those of which the slope promises most.
        rivals: classes whose planes are looked at to begin with, a gradient each; 0 looks at none.

    Returns:
        The point of fewest changes seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    rows = near.start()
    opening(near, rows, rivals)
    beam(near, rows, steps, width, tries)
    return near.finish()


def beam(near: Nearest, rows: Tensor, steps: int, width: int, tries: int) -> None:
    """Take note of the points of a beam search; samples leave when no step could bring fewer changes than are known."""
    kept = torch.zeros_like(near.clean[rows])[:, None]  # (rows, beam, features)
    names = torch.rand(kept.shape[2], dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(rows.device)
    for step in range(steps):
        going = near.distance[rows] > step + 1
        rows, kept = rows[going], kept[going]
        if not len(rows):
            return
        tried = [_tried(near, one, rows, tries) for one in kept.unbind(1)]
        margin, feature, end = (torch.cat(one, 1) for one in zip(*tried, strict=True))  # (rows, beam * tries)
        parent = torch.arange(margin.shape[1], device=rows.device) // (margin.shape[1] // len(tried))
        name = ((kept != 0).double() @ names)[:, parent] + names[feature]
        place = _distinct(margin, name, width)  # (rows, new beam)
        start = kept.gather(1, parent[place][:, :, None].expand(-1, -1, kept.shape[2]))
        kept = start.scatter(2, feature.gather(1, place)[:, :, None], end.gather(1, place)[:, :, None])


def _tried(near: Nearest, delta: Tensor, rows: Tensor, tries: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ask about one feature more; return margins, features, and where they were moved to, shape (rows, tries) each.

    Where too few are left to change, the change itself is asked about again, with a margin of infinity.
    """
    z, logits, _ = near.follow(delta, rows)
    slope = -input_gradient(near.threat.margin(logits, near.y[rows]), z).to(near.dtype).flatten(1)
    ends = near.low[rows], near.high[rows]
    end = torch.where((ends[1] * slope > ends[0] * slope) | (ends[0] == 0), ends[1], ends[0])
    gain = torch.where((delta == 0) & (end != 0), slope * end, -torch.inf)
    gain, feature = (one[:, :tries] for one in gain.sort(dim=1, descending=True, stable=True))  # of equals the first
    end, margins = torch.where(gain.isfinite(), end.gather(1, feature), delta.gather(1, feature)), []
    for place in range(feature.shape[1]):
        at = slice(place, place + 1)
        logits, _ = near.ask(delta.scatter(1, feature[:, at], end[:, at]), rows)
        margins.append(near.threat.margin(logits, near.y[rows]).double())
    return torch.where(gain.isfinite(), torch.stack(margins, 1), torch.inf), feature, end


def _distinct(margin: Tensor, name: Tensor, width: int) -> Tensor:
    """Return the places of the lowest margins of different names, shape (rows, width): the first again where there are fewer."""
    order = margin.argsort(dim=1, stable=True)
    name, left = name.gather(1, order), margin.gather(1, order).isfinite()
    found: list[Tensor] = []
    while len(found) < width and (not found or bool(left.any())):
        first = left.double().argmax(1, keepdim=True)
        left &= (name - name.gather(1, first)).abs() > _SAME
        found.append(order.gather(1, first))
    return torch.cat(found, 1)
