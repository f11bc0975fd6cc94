"""A second look, in float64, at gradients that differ: by rounding, or because the loss mixes examples.

A loss has a kink wherever a ReLU is 0 or two entries of a maximum are equal. Numbers that single precision rounds to one side of
it in a batch and to the other alone change the slope by far more than their rounding. In float64 hardly any do; mixing stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from hauberk.core import rng
from hauberk.core.train import Loss
from hauberk.privacy.dp.draws import Even

SLACK = 1e-6  # share by which gradients in float64 may differ: far less than in single precision, so that no mixing slips through
DRIFT = 1e-2  # least share of the loss by which another precision may change it


@dataclass(frozen=True)
class Doubt:
    """Gradients that differ.

    Arguments:
        number: of the examples.
        how: they differ, in words.
        rows: the examples.
        value: the loss of them together.
        parts: rows of each part of them, its share in the whole, and its loss.
        scale: norm of a gradient that differences are measured by.
        usual: norm of one example's gradient.
        share: of the scale that the gradients may differ by, as they were compared.
    """

    number: int
    how: str
    rows: Tensor
    value: float
    parts: Sequence[tuple[Tensor, float, float]]
    scale: float
    usual: float
    share: float


def single(model: nn.Module, x: Tensor) -> bool:
    """Return whether anything is kept at less than float64."""
    return any(_narrow(one) for one in (x, *model.parameters(), *model.buffers()))


def stands(doubt: Doubt, loss: Loss, model: nn.Module, parameters: Sequence[Parameter], x: Tensor, y: Tensor) -> str:
    """Return why a doubt stands after the same passes in float64, or "" where rounding was all.

    Two gradients, the parameters and one pass are held in float64, nothing afterwards; the model is as it was. Where a device has
    no float64 it runs on the CPU.

    Arguments:
        doubt: what was found.
        loss: of a model, inputs and labels.
        model: to train.
        parameters: that are trained.
        x: inputs, (n, ...).
        y: labels, (n, ...).
    """
    try:
        with _double(model) as copies:
            wanted = [copies.get(id(one), one) for one in parameters]
            replaced = [one for one in parameters if id(one) in copies]
            value, left = _slopes(loss, model, wanted, replaced, x[doubt.rows], y[doubt.rows])
            values, size = [(doubt.value, value)], float(norm(left))
            total = 0.0
            for rows, share, before in doubt.parts:
                value, made = _slopes(loss, model, wanted, replaced, x[rows], y[rows])
                values.append((before, value))
                total += share * float(norm(made))
                for at in range(len(left)):
                    left[at] = left[at] - share * made[at]
                del made  # before the next pass
            away = float(norm(left))
    except Exception as problem:  # whatever a layer without float64 raises, or memory that does not suffice
        told = f"whether that is rounding cannot be told, since it does not run in float64 ({str(problem)[:150]})"
        return f"{told}: where the loss is meant to keep them apart, let it and the layers run in float64 too"
    most = max(abs(one) for pair in values for one in pair)
    if not all(abs(a - b) <= max(doubt.share, DRIFT) * most for a, b in values):
        return "whether that is rounding cannot be told, since the loss is another one in float64"
    # The lesser of the norms: neither precision may make the other's measure coarser.
    if away <= SLACK * min(doubt.scale, max(total, size)) + torch.finfo(torch.float64).tiny ** 0.5:
        return ""
    return f"in float64 by {away:.3g} too"


def norm(parts: Sequence[Tensor]) -> Tensor:
    """Return the norm of all entries together."""
    return torch.stack([torch.linalg.vector_norm(one, dtype=torch.float64).cpu() for one in parts]).norm()


def _slopes(
    loss: Loss, model: nn.Module, wanted: Sequence[Tensor], replaced: Sequence[Tensor], x: Tensor, y: Tensor
) -> tuple[float, list[Tensor]]:
    buffers = [(layer._buffers, dict(layer._buffers)) for layer in model.modules()]
    try:
        for table, values in buffers:
            table.update({name: None if one is None else one.clone() for name, one in values.items()})
        place = wanted[0].device
        with rng.isolated(0, place), Even(), torch.enable_grad(), torch.autocast(place.type, enabled=False):
            value = loss(model, _wide(x), _wide(y))
            found = torch.autograd.grad(value, [*wanted, *replaced], allow_unused=True)
    finally:
        for table, values in buffers:
            table.update(values)
    if any(one is not None for one in found[len(wanted):]):
        raise RuntimeError("the loss holds parameters of its own accord, which stay in single precision")
    made = [torch.zeros((), dtype=torch.float64) if one is None else one.detach() for one in found[: len(wanted)]]
    if all(one is None for one in found) or not bool(value.isfinite().all() and norm(made).isfinite()):
        raise RuntimeError("there it has no gradient, or one that is not finite")
    return float(value.detach()), made


@contextlib.contextmanager
def _double(model: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Put float64 copies in the place of parameters and buffers; yield them by the address of what they stand for."""
    tables: list[Any] = [table for layer in model.modules() for table in (layer._parameters, layer._buffers)]
    own: list[tuple[Any, dict[str, Tensor | None]]] = [(table, dict(table)) for table in tables]
    copies: dict[int, Tensor] = {}
    try:
        for table, values in own:
            for name, one in values.items():
                if one is not None and (_narrow(one) or one.device.type == "mps"):
                    if id(one) not in copies:
                        wide = _wide(one.detach())
                        copies[id(one)] = Parameter(wide, one.requires_grad) if isinstance(one, Parameter) else wide
                    table[name] = copies[id(one)]
        yield copies
    finally:
        for table, values in own:
            table.update(values)


def _narrow(one: Tensor) -> bool:
    return (one.is_floating_point() and one.dtype != torch.float64) or one.dtype in (torch.complex32, torch.complex64)


def _wide(one: Tensor) -> Tensor:
    one = one.cpu() if one.device.type == "mps" else one
    return one.to(torch.complex128 if one.is_complex() else torch.float64) if _narrow(one) else one
