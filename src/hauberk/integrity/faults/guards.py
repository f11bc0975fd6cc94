"""Guards against faults: activations held in the range they had on clean data, and checksums that name the changed layer."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import hmac
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError
from hauberk.core.predictors import ModulePredictor
from hauberk.integrity.faults.places import layers_with_outputs


@dataclasses.dataclass(frozen=True)
class Range:
    """The lowest and the highest activation of one layer on clean data."""

    low: float
    high: float


def activation_ranges(module: nn.Module, x: Tensor, *, batch_size: int = 256) -> dict[str, Range]:
    """Return the range of every layer's activations on clean samples x, shape (n, ...), and of the answer, by the name "".

    Raises:
        ModelError: where no output is a floating tensor, or one holds NaN on clean samples: neither could be guarded.
    """
    found: dict[str, Range] = {}

    def keep(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            low, high = float(output.min()), float(output.max())
            if math.isnan(low) or math.isnan(high):
                raise ModelError(f"layer '{name}' gives NaN on clean samples", want="numbers, whose range can be held")
            before = found.get(name, Range(low, high))
            found[name] = Range(min(low, before.low), max(high, before.high))

    parts = dict(module.named_modules())
    handles = [
        parts[name].register_forward_hook(lambda _part, _inputs, output, name=name: keep(name, output))
        for name in dict.fromkeys((*layers_with_outputs(module), ""))
    ]
    ask = ModulePredictor(module)
    try:
        with torch.no_grad():
            for part in x.split(batch_size):
                ask(part)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ModelError("the model has no activations that could be guarded", want="samples, and a floating tensor as an output")
    return found


@contextlib.contextmanager
def clipped_ranges(module: nn.Module, ranges: Mapping[str, Range], *, slack: float = 0.0) -> Iterator[None]:
    """Hold every layer's activations in their clean range for the block; NaN becomes the lowest value (Ranger).

    Source: Chen et al. 2021, arXiv:2003.13874. On the samples the ranges came from nothing changes.

    Arguments:
        module: asked through hooks, which are gone after the block.
        ranges: from `activation_ranges`.
        slack: by which share of its width each range is widened on both sides.
    """

    def clip(output: object, one: Range) -> object:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        more = slack * (one.high - one.low)
        return output.nan_to_num(nan=one.low, posinf=one.high, neginf=one.low).clamp(one.low - more, one.high + more)

    parts = dict(module.named_modules())
    handles = [
        parts[name].register_forward_hook(lambda _part, _inputs, output, one=one: clip(output, one))
        for name, one in ranges.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_checksums(module: nn.Module) -> dict[str, str]:
    """Return a SHA-256 of every parameter, buffer and packed weight, by name: its dtype, shape and bytes.

    Raises:
        ModelError: for a model that holds nothing to guard.
    """
    held: dict[str, object] = dict(module.state_dict())
    held |= dict(module.named_buffers(remove_duplicate=False))  # those that the state leaves out, too
    found = {}
    for name, value in held.items():
        digest = hashlib.sha256()
        _add(digest, value)
        found[name] = digest.hexdigest()
    if not found:
        raise ModelError("the model holds no parameter and no buffer", want="something whose change would show")
    return found


def _add(digest: hashlib._Hash, value: object) -> None:
    """Add to a digest what a state holds: tensors, quantised ones, and the packed objects and tuples around them."""
    if isinstance(value, Tensor) and value.is_quantized:
        scales: object = (value.q_scale(), value.q_zero_point())
        if value.qscheme() not in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scales = (value.q_per_channel_scales(), value.q_per_channel_zero_points(), value.q_per_channel_axis())
        _add(digest, (value.int_repr(), scales))
    elif isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        digest.update(repr((str(plain.dtype), tuple(plain.shape))).encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    elif isinstance(value, Mapping):
        _add(digest, list(value.items()))
    elif isinstance(value, list | tuple):
        digest.update(f"[{len(value)}".encode())
        for one in value:
            _add(digest, one)
    elif isinstance(value, torch.ScriptObject):
        _add(digest, value.__getstate__())
    else:
        digest.update(repr(value).encode())


def changed_layers(module: nn.Module, checksums: Mapping[str, str]) -> list[str]:
    """Return the names whose values are no longer what the checksums say, those gone and those new included."""
    now = layer_checksums(module)
    same = {name for name in now if name in checksums and hmac.compare_digest(now[name], checksums[name])}
    return sorted((set(now) | set(checksums)) - same)
