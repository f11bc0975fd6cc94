"""Where a fault strikes: weights, activations and inputs of a model, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.errors import ModelError, nearest
from hauberk.integrity.faults.bits import LAYOUT, once
from hauberk.integrity.faults.packed import packed_of
from hauberk.integrity.faults.values import count_of, known_kind, strike, struck


def layers_with_weights(module: nn.Module) -> list[str]:
    """Return the names of the parts that hold floating or int8 parameters, int8 buffers or packed int8 weights of their own."""
    return [name for name, part in module.named_modules() if _memory(part) or packed_of(part)]


def layers_with_outputs(module: nn.Module) -> list[str]:
    """Return the names of the parts without children, whose outputs are the activations; "" is a model that is one layer."""
    return [name for name, part in module.named_modules() if not list(part.children())]


@contextlib.contextmanager
def faulty_weights(
    module: nn.Module, kind: str, share: float, *, generator: torch.Generator, layers: Sequence[str] | None = None
) -> Iterator[int]:
    """Strike a share of the weights of each layer for the block; afterwards they are what they were, bit by bit.

    Arguments:
        module: changed in place during the block.
        kind: see `struck`.
        share: of the weights of each layer, rounded up to one at least; 0 strikes none.
        generator: of places and values.
        layers: those struck; None strikes every layer that has weights, the last included.

    Returns:
        How many weights were struck; those that two layers share, once.

    Raises:
        ModelError: for a module without weights, or a layer that it does not have.
    """
    known_kind(kind)
    parts, known = dict(module.named_modules()), layers_with_weights(module)
    if not known:
        raise ModelError("the model has no weights", want="floating or int8 parameters")
    _refuse_unknown(layers, known, "weights")
    chosen = known if layers is None else layers
    memory = once([value for name in chosen for value in _memory(parts[name])])
    saved = [value.detach().clone() for value in memory]
    packed = [one for name in chosen if (one := packed_of(parts[name])) is not None]
    try:
        total = 0
        with torch.no_grad():
            for value in (*memory, *(one.codes for one in packed)):
                count = count_of(share, value.numel())
                value.copy_(strike(value, kind, count, generator))
                total += count
            for one in packed:
                one.write()
        yield total
    finally:
        with torch.no_grad():
            for value, before in zip(memory, saved, strict=True):
                value.copy_(before)
            for one in packed:
                one.restore()


@contextlib.contextmanager
def faulty_activations(
    module: nn.Module, kind: str, share: float, *, seed: int, layers: Sequence[str] | None = None, lasting: bool = True
) -> Iterator[None]:
    """Strike a share of the activations of each layer while the block asks the model.

    Arguments:
        module: asked through hooks, which are gone after the block.
        kind: see `struck`.
        share: of the units of a sample's activations, rounded up to one at least; 0 strikes none.
        seed: of places and values.
        layers: those whose outputs are struck; None strikes every layer without children.
        lasting: the same units fail for every sample and call, as a broken part does; else each sample has faults of its own.

    A model whose layers are functions alone is struck in its answer, the one output that can be reached.

    Raises:
        ModelError: for a layer that the model does not have; after the block, where it asked the model and nothing was struck.
    """
    known_kind(kind)
    parts, known = dict(module.named_modules()), layers_with_outputs(module)
    _refuse_unknown(layers, list(parts), "outputs")
    calls: dict[str, int] = {}
    asked = 0

    def hook(name: str) -> Callable[[nn.Module, object, object], object]:
        def change(_part: nn.Module, _inputs: object, output: object) -> object:
            if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim < 2 or not output.numel():
                return output
            calls[name] = calls.get(name, 0) + 1
            draws = rng.generator(seed, "activations", name, 0 if lasting else calls[name])
            flat = output.detach().flatten(1).clone()
            count = count_of(share, flat.shape[1])
            rank = torch.rand(1 if lasting else len(flat), flat.shape[1], generator=draws).argsort(1)[:, :count]
            places = rank.to(flat.device).expand(len(flat), -1)
            flat.scatter_(1, places, struck(flat.gather(1, places), kind, draws) if count else flat.gather(1, places))
            return flat.view(output.shape)

        return change

    answer = hook("")

    def last(part: nn.Module, inputs: object, output: object) -> object:
        nonlocal asked
        asked += 1
        return answer(part, inputs, output) if layers is None and not calls else output

    handles = [parts[name].register_forward_hook(hook(name)) for name in (known if layers is None else layers) if name]
    handles.append(module.register_forward_hook(last if layers is None or "" not in layers else answer))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if asked and not calls:
        raise ModelError(
            "no activation of the model could be struck", want="a layer whose output is a floating tensor, a row per sample",
            fix="Name other layers, or strike weights or inputs",
        )


def faulty_inputs(x: Tensor, kind: str, share: float, *, generator: torch.Generator) -> Tensor:
    """Return x, shape (n, ...), with a share of the features of each sample struck, rounded up to one at least."""
    known_kind(kind)
    flat = x.detach().flatten(1).clone()
    count = count_of(share, flat.shape[1])
    for row in range(len(flat) if count else 0):
        flat[row] = strike(flat[row], kind, count, generator)
    return flat.view(x.shape)


def _memory(part: nn.Module) -> list[Tensor]:
    own = [value for value in part.parameters(recurse=False) if value.dtype in LAYOUT or value.dtype is torch.int8]
    held = [value for value in part.buffers(recurse=False) if value.dtype is torch.int8]
    return [value for value in (*own, *held) if value.numel()]


def _refuse_unknown(layers: Sequence[str] | None, known: Sequence[str], what: str) -> None:
    for name in layers or ():
        if name not in known:
            raise ModelError(f"there is no layer '{name}' with {what}", want="a name of model.named_modules()",
                             fix=nearest(name, list(known)))
