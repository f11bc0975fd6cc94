"""Obfuscated weights in files: keys, locked and renamed safetensors, locked ONNX models."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from hauberk.assets.obfuscate.draws import as_key, new_key
from hauberk.assets.obfuscate.keyed import Locked, lock_weights, unlock_weights
from hauberk.assets.obfuscate.onnx_keyed import onnx_tensors, unreached, with_onnx_tensors
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.files import cannot_write, write_whole

MARK = "hauberk.lock"
_LARGEST_MAP = 64 << 20


def write_key(path: Path) -> None:
    """Write a new key, 64 hexadecimal digits that its owner alone may read.

    Raises:
        UsageError: for a file that is there already, or a place that cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UsageError(f"{path} exists already", want="a new file: a key is never written over") from error
    except OSError as error:
        raise cannot_write(path, error) from error
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(new_key().hex() + "\n")


def read_key(path: Path) -> bytes:
    """Return the key in a file: 64 hexadecimal digits, or 32 raw bytes.

    Raises:
        UsageError: for a file that is not there, or holds no key; what it holds is not shown.
    """
    try:
        with path.open("rb") as file:
            found = file.read(256)
    except OSError as error:
        told = f"the key file {path} cannot be read ({error.strerror})"
        raise UsageError(told, want="a key", fix="Make one: --new-key") from error
    if re.fullmatch(rb"[0-9a-fA-F]{64}\s*", found):
        return bytes.fromhex(found.decode("ascii"))
    try:
        return as_key(found)
    except UsageError as error:
        raise UsageError(
            f"the key file {path} holds {len(found)} bytes", want="64 hexadecimal digits, or 32 bytes", fix="Make one: --new-key"
        ) from error


def save_locked(state: Mapping[str, Tensor], path: Path, key: bytes, *, octaves: float = 3.0) -> None:
    """Write weights under a key as safetensors: any tool opens the file, and what it loads is worth nothing.

    Raises:
        UsageError: as `lock_weights`, or for a place that cannot be written.
    """
    locked = lock_weights(state, key, octaves=octaves)
    tensors = {name: value.contiguous() for name, value in locked.state.items()}
    write_whole(path, safetensors.torch.save(tensors, {MARK: _facts(locked, octaves)}))


def load_locked(path: Path, key: bytes) -> dict[str, Tensor]:
    """Return the weights of a file that `save_locked` wrote.

    Raises:
        DataError: for a file that is not locked, or broken.
        UsageError: for another key.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = (file.metadata() or {}).get(MARK)
            state = {name: file.get_tensor(name) for name in file.keys()} if facts else {}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error})", want="safetensors that were locked") from error
    if not facts:
        raise DataError(f"{path} is not locked", want="a file that was locked", fix="Use it as it is")
    salt, tag, octaves = _read(facts, path)
    return unlock_weights(Locked(state, salt, tag), key, octaves=octaves)


def lock_onnx(model: Any, key: bytes, *, octaves: float = 3.0) -> Any:
    """Return an ONNX model whose weights are under a key; it runs anywhere and answers at random.

    Raises:
        ModelError: where more than a hundredth of the weights is of a kind that would stay in the open.
        UsageError: as `lock_weights`.
    """
    import onnx

    tensors, left = onnx_tensors(model), unreached(model)
    held, opened = sum(one.numel() for one in tensors.values()), sum(left.values())
    if not held or opened > 0.01 * held:
        most = f", such as '{max(left, key=lambda one: left[one])[:60]}'" if left else ""
        raise ModelError(
            f"{opened} of {held + opened} weights would stay in the open{most}", want="floating-point initializers",
            fix="Encrypt the file: hauberk encrypt",
        )
    locked = lock_weights(tensors, key, octaves=octaves)
    made = with_onnx_tensors(model, locked.state)
    onnx.helper.set_model_props(made, {**{one.key: one.value for one in model.metadata_props}, MARK: _facts(locked, octaves)})
    return made


def unlock_onnx(model: Any, key: bytes) -> Any:
    """Return the ONNX model that `lock_onnx` was given, by its key.

    Raises:
        DataError: for a model that is not locked.
        UsageError: for another key.
    """
    facts = {one.key: one.value for one in model.metadata_props}.get(MARK)
    if not facts:
        raise DataError("the model is not locked", want="one that was locked", fix="Use it as it is")
    salt, tag, octaves = _read(facts, "the model")
    made = with_onnx_tensors(model, unlock_weights(Locked(onnx_tensors(model), salt, tag), key, octaves=octaves))
    kept = [one for one in made.metadata_props if one.key != MARK]
    del made.metadata_props[:]
    made.metadata_props.extend(kept)
    return made


def write_names(path: Path, names: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Write the map that undoes `rename` as JSON."""
    write_whole(path, json.dumps({new: [old, list(shape)] for new, (old, shape) in names.items()}, indent=1) + "\n")


def read_names(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the map that `write_names` wrote.

    Raises:
        DataError: for a file that is not such a map.
    """
    try:
        if path.stat().st_size > _LARGEST_MAP:
            raise DataError(f"{path} is {path.stat().st_size} bytes", want=f"a map of at most {_LARGEST_MAP}")
        held = json.loads(path.read_text(encoding="utf-8"))
        return {str(new): (str(old), tuple(int(size) for size in shape)) for new, (old, shape) in held.items()}
    except OSError as error:
        want = "the JSON that was written with the renamed file"
        raise DataError(f"{path} cannot be read ({error.strerror})", want=want) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is no map of names", want="the JSON that was written with the renamed file") from error


def _facts(locked: Locked, octaves: float) -> str:
    return json.dumps({"salt": locked.salt.hex(), "tag": locked.tag.hex(), "octaves": octaves})


def _read(facts: str, where: object) -> tuple[bytes, bytes, float]:
    try:
        held = json.loads(facts)
        salt, tag, octaves = bytes.fromhex(held["salt"]), bytes.fromhex(held["tag"]), float(held["octaves"])
        if not 0 <= octaves <= 16:
            raise ValueError(f"octaves is {octaves}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"the lock of {where} cannot be read ({error})", want="a file as it was written") from error
    return salt, tag, octaves
