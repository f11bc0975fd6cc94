"""Membership from labels alone: a record that was trained on keeps its label when it is turned, moved or blurred by noise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.errors import DataError, UsageError
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import signals
from hauberk.privacy.membership.gap import right
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.signals import Records

PAPER = "Choquette-Choo et al. 2021, arXiv:2007.14321"
View = Callable[[Tensor, torch.Generator], Tensor]
Distance = Callable[[Target, Tensor, Tensor], Tensor]


@inference(
    question="Do labels alone give a member away, in that they stay the same when the record is changed a little?",
    access=Access.LABEL, paper=PAPER, tags=TAGS,
)
def augmentation_membership(
    target: Target | nn.Module, members: Records, non_members: Records, *, change: View | None = None, views: int = 16,
    seed: int = 0,
) -> MembershipScores:
    """Score each record by the share of its changed copies, and of itself, that get its label.

    Arguments:
        target: with LABEL access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.
        change: `(x, generator) -> x`, the augmentation of the target's training where it is known. None: images are moved by up
            to two pixels and mirrored; zeros and ones are turned with probability .05; other numbers get noise of a tenth of
            their spread.
        views: changed copies of each record.
        seed: of the changes; each record meets the same ones.

    Returns:
        The scores of both sides, from 0 to 1.

    Raises:
        DataError: for whole numbers that are no images, zeros and ones, without `change`: no usual change suits them.
    """
    view = as_target(target)
    sides = (members, non_members)
    made = change or usual_change(torch.cat([one[0].detach() for one in sides]))
    scores = []
    for side in sides:
        hits = right(view, side).double()
        if len(hits):
            for copy in range(views):
                hits += right(view, (made(side[0].detach(), rng.generator(seed, "view", copy)), side[1])).double()
        scores.append(hits / (views + 1))
    return signals.both_sides(*scores)


@inference(
    question="Do labels alone give a member away, by how far it lies from where the label turns?", access=Access.LABEL,
    paper=PAPER, tags=TAGS, preset="thorough",
)
def boundary_membership(
    target: Target | nn.Module, members: Records, non_members: Records, *, distance: Distance | None = None,
    directions: int = 8, seed: int = 0,
) -> MembershipScores:
    """Score each record by its distance to the decision boundary; one that gets another label than its own scores 0.

    Arguments:
        target: with LABEL access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.
        distance: `(target, x, y) -> (n,)`, such as the size of what HopSkipJump changes. None: the mean, over random directions,
            of the step at which the label turns, found by doubling and halving.
        directions: random directions, the same for all records; each costs 20 queries a record.
        seed: of the directions.

    Returns:
        The scores of both sides: distances in units of the records' spread.

    Raises:
        UsageError: for fewer than one direction.
        DataError: for whole numbers without `distance`: a step from one would be no record.
    """
    if directions < 1:
        raise UsageError(f"directions is {directions}", want="1 or more")
    view = as_target(target)
    sides = (members, non_members)
    x = torch.cat([one[0].detach() for one in sides])
    if distance is None and not x.is_floating_point():
        raise DataError(f"the records are {x.dtype}", want="floating point numbers", fix="Give them as such, or a distance")
    x = x if x.is_floating_point() else x.float()
    # Sums of what is sorted: neither side nor order enters, to the last bit.
    unit = float(x.double().flatten().sort().values.std()) if x.numel() > 1 else 1.0
    ways = torch.randn((directions, *x.shape[1:]), generator=rng.generator(seed, "directions")).to(x)
    ways = ways / ways.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))
    scores = []
    for side in sides:
        own = right(view, side)
        far = torch.zeros(len(own), dtype=torch.float64)
        if bool(own.any()):
            z, y = side[0].detach()[own.to(side[0].device)], side[1].cpu()[own]
            found = distance(view, z, y) if distance is not None else _turns(view, z, y, ways * max(unit, 1e-12))
            far[own] = found.double().cpu()
        scores.append(far)
    return signals.both_sides(*scores)


def usual_change(x: Tensor) -> View:
    """Return the change of records like x, shape (n, ...), that `augmentation_membership` makes by itself."""
    if x.ndim == 4:
        return _shift
    if bool(((x == 0) | (x == 1)).all()):
        return lambda z, draw: torch.where((rng.uniform(z[:1], draw) < 0.05).expand_as(z), 1 - z, z)
    if not x.is_floating_point():
        raise DataError(
            f"the records are {x.dtype} and not all 0 or 1", want="floating point numbers",
            fix="Give them as such; for tokens, give a change that leaves tokens",
        )
    spread = x.sort(0).values.std(0) if len(x) > 1 else torch.ones_like(x[0])  # sorted: the order must not enter
    return lambda z, draw: z + 0.1 * spread * rng.normal(z[:1], draw)


def _shift(x: Tensor, draw: torch.Generator) -> Tensor:
    down, across, mirrored = torch.randint(0, 5, (3,), generator=draw).tolist()
    framed = nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    moved = framed[:, :, down : down + x.shape[2], across : across + x.shape[3]]
    return moved.flip(3) if mirrored % 2 else moved


def _turns(view: Target, x: Tensor, y: Tensor, ways: Tensor) -> Tensor:
    """Return the mean step along each of the ways at which the label turns, shape (n,), at most 2^7."""
    total = torch.zeros(len(x), dtype=torch.float64)
    for way in ways:
        low, high = torch.zeros(len(x), dtype=torch.float64), torch.full((len(x),), 128.0, dtype=torch.float64)
        known = torch.zeros(len(x), dtype=torch.bool)
        for power in range(-4, 8):  # the first step of 1/16, 1/8, ..., 128 that turns the label
            step = torch.full((len(x),), 2.0**power, dtype=torch.float64)
            held = right(view, (_along(x, way, step), y))
            high = torch.where(~held & ~known, step, high)
            known |= ~held
            low = torch.where(held & ~known, step, low)
        for _ in range(8):
            middle = (low + high) / 2
            held = right(view, (_along(x, way, middle), y))
            low, high = torch.where(held, middle, low), torch.where(held, high, middle)
        total += (low + high) / 2
    return total / len(ways)


def _along(x: Tensor, way: Tensor, step: Tensor) -> Tensor:
    return x + way * step.to(x).reshape(-1, *[1] * (x.ndim - 1))
