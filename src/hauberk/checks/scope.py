"""Scope: what was assessed, in plain values for the report; and its fingerprint, by which a run is resumed."""

from __future__ import annotations

import datetime
import hashlib
import math
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import hauberk
from hauberk.checks.context import Settings, Trusted
from hauberk.core.card import Card
from hauberk.core.data import Data, Split
from hauberk.core.structure import Structure
from hauberk.core.target import Normalize, Target
from hauberk.core.threat import Bounds, Threat
from hauberk.io.batches import FixedBatch

HASHED_WHOLE = 64 << 20  # bytes of samples up to which all are hashed
_MODEL_KEYS = ("type", "sha256", "structure", "outputs")
_DATA_KEYS = ("samples", "shape", "classes", "modality", "sha256")
HASHED_PART = 2048  # samples hashed of larger data, evenly spaced; labels are hashed all


def scope(target: Target, data: Data, settings: Settings, *, notices: Sequence[str]) -> dict[str, Any]:
    """Return what was assessed, under which assumptions, and where: plain JSON values.

    Arguments:
        target, data, settings: of the assessment.
        notices: sentences that the reader should know, repeated ones shown once.
    """
    model = {key: value for key, value in _model(target).items() if key != "structure"}
    return {
        "model": model,
        "data": _data(data),
        "access": target.access.name,
        "threats": [threat.within(data.bounds).describe() for threat in settings.threats],
        "preset": settings.preset, "seed": settings.seed, "queries": settings.queries,
        "notices": list(dict.fromkeys(notices)),
        "host": {
            "cores": os.cpu_count() or 1, "threads": torch.get_num_threads(), "device": _device(target),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "hauberk": hauberk.__version__, "python": platform.python_version(), "torch": str(torch.__version__),
            "numpy": np.__version__,
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def fingerprint(target: Target, data: Data, settings: Settings, cards: Sequence[Card]) -> dict[str, Any]:
    """Return what must be equal for an interrupted run to be resumed: plain JSON values, none of time or place."""
    model, shown = _model(target), _data(data)
    return {
        "version": hauberk.__version__,
        "model": {**{key: model[key] for key in _MODEL_KEYS}, "bounds": _exact_bounds(target.bounds)},
        "data": {**{key: shown[key] for key in _DATA_KEYS}, "bounds": _exact_bounds(data.bounds)},
        "access": target.access.name,
        "threats": [_exact_threat(threat) for threat in settings.threats],
        "radii": [repr(float(radius)) for radius in settings.radii],
        "gates": {name: dict(limits) for name, limits in sorted(settings.gates.items())},
        "preset": settings.preset, "seed": settings.seed, "queries": settings.queries, "trust": settings.trust,
        "statement": hash_files([Path(settings.statement)]) if Path(settings.statement).is_file() else "",
        "trusted": _trusted(settings.trusted),
        "checks": [card.name for card in cards],
    }


def _trusted(trusted: Trusted) -> dict[str, str]:
    named = {"policy": trusted.policy, "signature": trusted.signature, "unsafe": trusted.unsafe, **{
        f"key {place}": file for place, file in enumerate(trusted.keys)
    }}
    return {name: hash_files([Path(file)]) for name, file in named.items() if Path(file).is_file()}


def _model(target: Target) -> dict[str, Any]:
    predictor = target.predictor
    module = getattr(predictor, "module", None)
    plain: dict[str, Any] = {"name": target.name, "outputs": target.outputs, "files": [path.name for path in target.files]}
    if isinstance(module, nn.Module):
        parameters = sum(one.numel() for one in module.parameters())
        # Addresses in a description differ from run to run.
        drawing = re.sub(r"0x[0-9a-f]+", "", repr(module))
        return plain | {
            "type": _kind(module), "parameters": parameters,
            "sha256": hash_module(module), "covered": "parameters and buffers",
            "structure": hashlib.sha256(drawing.encode()).hexdigest(),
        }
    inner = getattr(predictor, "estimator", None)
    kind = type(inner if inner is not None else predictor).__name__
    digest, covered = "", "nothing: a function has no bytes to hash"
    if target.files:
        digest, covered = hash_files(target.files), "files"
    elif inner is not None:
        import joblib

        digest, covered = hashlib.sha256(joblib.hash(inner, hash_name="sha1").encode()).hexdigest(), "estimator"
    elif hasattr(predictor, "url"):
        digest, covered = hashlib.sha256(repr(predictor).encode()).hexdigest(), "description of the endpoint"
    return plain | {"type": kind, "parameters": None, "sha256": digest, "covered": covered, "structure": ""}


def _kind(module: nn.Module) -> str:
    """Return the class of a module; where it was wrapped to normalise or to take any batch, that of the inner one."""
    if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[0], Normalize):
        return _kind(module[1])
    return _kind(module.inner) if isinstance(module, FixedBatch) else type(module).__name__


def hash_module(module: nn.Module) -> str:
    """Return the SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, in the order of their names.

    Buffers that are no part of the state dict are hashed as well: a normalisation changes what the model answers.
    """
    digest = hashlib.sha256()
    held = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    for name in sorted(held):
        digest.update(f"{name}|{held[name].dtype}|{tuple(held[name].shape)}|".encode())
        digest.update(_bytes(held[name]))
    return digest.hexdigest()


def hash_files(files: Sequence[Path]) -> str:
    """Return the SHA-256 over the SHA-256 of each file, in the order given; of a single file, its own."""
    each = []
    for path in files:
        with path.open("rb") as file:
            each.append(hashlib.file_digest(file, "sha256").hexdigest())
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def hash_data(data: Data) -> tuple[str, str]:
    """Return the SHA-256 over all roles, and what it covers.

    All samples where they take at most 64 MiB; else 2,048 of each role, evenly spaced, first and last among them. Labels are
    always hashed all. Samples are read in parts.
    """
    digest = hashlib.sha256()
    partly = False
    for role, split in data.splits().items():
        index, whole = _hashed_positions(split)
        partly |= not whole
        digest.update(f"{role}|{len(split)}|{split.shape}|{split.y.dtype}|".encode())
        digest.update(_bytes(split.y))
        for part in index.split(256):
            x = split.x.take(part)
            digest.update(f"{x.dtype}|".encode())
            digest.update(_bytes(x))
    covered = f"labels, and {HASHED_PART} evenly spaced samples of each large role" if partly else "all samples and labels"
    return digest.hexdigest(), covered


def _hashed_positions(split: Split) -> tuple[Tensor, bool]:
    if len(split) <= HASHED_PART or 4 * len(split) * max(math.prod(split.shape), 1) <= HASHED_WHOLE:
        return torch.arange(len(split)), True
    return torch.arange(HASHED_PART) * (len(split) - 1) // (HASHED_PART - 1), False


def _data(data: Data) -> dict[str, Any]:
    digest, covered = hash_data(data)
    return {
        "name": data.name, "samples": {role: len(split) for role, split in data.splits().items()}, "shape": list(data.test.shape),
        "classes": data.classes, "modality": data.modality, "bounds": _shown_bounds(data.bounds),
        "sha256": digest, "covered": covered,
    }


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach()
    if plain.is_quantized:
        plain = plain.int_repr()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    return plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _shown_bounds(bounds: Bounds) -> list[float] | str:
    low, high = (torch.as_tensor(end).double() for end in bounds)
    if not low.ndim and not high.ndim and bool(low.isfinite() & high.isfinite()):
        return [float(low), float(high)]
    return f"per feature, from {float(low.min()):.4g} to {float(high.max()):.4g}"


def _exact_bounds(bounds: Bounds | None) -> list[Any] | None:
    return None if bounds is None else [_exact(end) for end in bounds]


def _exact_threat(threat: Threat) -> dict[str, Any]:
    return {
        "norm": threat.norm, "eps": _exact(threat.eps), "bounds": _exact_bounds(threat.bounds),
        "mask": None if threat.mask is None else _exact(threat.mask), "goal": threat.goal.value, "confidence": threat.confidence,
        **({} if threat.structure is None else {"structure": _exact_structure(threat.structure)}),
    }


def _exact_structure(structure: Structure) -> dict[str, Any]:
    return {
        "step": _exact(structure.step), "offset": _exact(structure.offset), "one_hot": [list(one) for one in structure.one_hot],
        "direction": None if structure.direction is None else _exact(structure.direction),
    }


def _exact(value: float | Tensor) -> Any:
    """Return a number to the last bit, or the shape and hash of a tensor."""
    if isinstance(value, Tensor) and value.ndim:
        return [list(value.shape), hashlib.sha256(_bytes(value)).hexdigest()]
    return repr(float(value))


def _device(target: Target) -> str:
    module = getattr(target.predictor, "module", None)
    place = next(iter(module.parameters()), None) if isinstance(module, nn.Module) else None
    return str(place.device) if place is not None else "cpu"
