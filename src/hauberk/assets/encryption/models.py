"""Models saved encrypted, and loaded for inference or to train on, with no plaintext on disk at any time."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.assets.encryption.access import Locks, Openers
from hauberk.assets.encryption.keys import Secret
from hauberk.assets.encryption.reader import EncryptedReader
from hauberk.assets.encryption.suites import DEFAULT
from hauberk.assets.encryption.tensors import EncryptedTensors, holds, write_safetensors
from hauberk.assets.encryption.writer import CHUNK, EncryptedWriter
from hauberk.assets.encryption.writing import new_file, write_all
from hauberk.core.errors import HauberkError, ModelError, UnsafeFile, UsageError, require


def save_encrypted(
    obj: Any, path: str | Path, keys: Locks, *, cipher: str = DEFAULT, chunk: int = CHUNK, content: str = "auto",
    force: bool = False,
) -> None:
    """Encrypt a model as it is written: weights, a checkpoint, or the bytes of a file.

    Arguments:
        obj: a module (its state dict is taken), tensors by name, whatever torch.save takes, or bytes.
        path: the encrypted file; the old one stays until the new one is whole.
        keys: who may open: bytes of a raw key, or one or several locks. `(enc_key, enc_mode)` of MindSpore are keys and cipher.
        cipher: by name, or AES-GCM, AES-CBC, SM4-CBC.
        chunk: plaintext bytes of a chunk; tensors are read back by whole chunks.
        content: torch, safetensors, onnx or other; auto takes safetensors for dense tensors by name, onnx for bytes where
            `.onnx` is in the path, and torch for the rest.
        force: write over a file that is there.

    Raises:
        UsageError: for keys, cipher, content or place that cannot be used.
    """
    held = obj.state_dict() if isinstance(obj, nn.Module) else obj
    kind = _kind(held, Path(path)) if content == "auto" else content
    if isinstance(held, Secret) and kind in ("torch", "safetensors"):
        raise UsageError(f"bytes were given to save as {kind}", want="tensors, or content='other'")
    with (
        new_file(Path(path), force=force) as sink,
        EncryptedWriter(sink, keys, cipher=cipher, chunk=chunk, content=kind) as writer,
    ):
        stream: Any = writer
        if isinstance(held, Secret):
            write_all(stream, memoryview(held).cast("B"))
        elif kind == "safetensors":
            write_safetensors(_tensors(held), stream)
        else:
            torch.save(held, stream)


def load_encrypted(path: str | Path, keys: Openers, *, map_location: str | torch.device = "cpu") -> Any:
    """Load what an encrypted file holds, from memory. Every chunk of the file is authenticated before the call returns.

    Arguments:
        path: the encrypted file.
        keys: bytes of a raw key, or any openers.
        map_location: where tensors go.

    Returns:
        Tensors by name (safetensors); what torch saved, opened with `weights_only=True`; an onnxruntime session; or the bytes.

    Raises:
        UsageError: when no key fits.
        ModelError: when the file is damaged, altered, cut short, or holds something else than it says.
        UnsafeFile: when loading it would run code, or its header asks for more than the limits.
    """
    with EncryptedReader(path, keys) as reader:
        kind = reader.header.content
        if kind == "safetensors":
            tensors = EncryptedTensors(reader)
            loaded: Any = {name: tensors[name].to(map_location) for name in tensors}
        elif kind == "torch":
            loaded = _load_torch(reader, map_location)
        else:
            loaded = reader.readall()
        reader.verify()
    return _session(loaded, Path(path).name) if kind == "onnx" else loaded


def open_encrypted(path: str | Path, keys: Openers) -> EncryptedTensors:
    """Open an encrypted safetensors file, to decrypt tensor by tensor; for other files there is `EncryptedReader`.

    Raises:
        UsageError: when no key fits.
        ModelError: when the file is damaged, altered, cut short, or holds no safetensors.
    """
    reader = EncryptedReader(path, keys)
    try:
        if reader.header.content != "safetensors":
            raise ModelError(f"{reader.name} holds {reader.header.content}", want="safetensors", fix="Use load_encrypted")
        return EncryptedTensors(reader)
    except BaseException:
        reader.close()
        raise


def _load_torch(reader: EncryptedReader, place: str | torch.device) -> Any:
    stream: Any = reader
    try:
        return torch.load(stream, map_location=place, weights_only=True)
    except HauberkError:
        raise
    except pickle.UnpicklingError as error:
        reader.verify()
        raise UnsafeFile(
            f"{reader.name} holds more than tensors and plain values ({' '.join(str(error).split())[:160]})",
            want="a state dict or checkpoint", fix="Save state_dict() alone",
        ) from error
    except Exception as error:  # torch raises errors of many kinds for a broken file
        reader.verify()
        raise ModelError(
            f"what {reader.name} holds cannot be loaded ({' '.join(str(error).split())[:200]})", want="what torch.save wrote"
        ) from error


def _session(held: bytes, name: str) -> Any:
    runtime: Any = require("onnxruntime", "onnx", "an encrypted ONNX model")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    try:
        return runtime.InferenceSession(held, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise ModelError(
            f"what {name} holds cannot be opened by onnxruntime ({' '.join(str(error).split())[:200]})",
            want="a whole ONNX model with its weights inside",
        ) from error


def _kind(held: Any, path: Path) -> str:
    if isinstance(held, Secret):
        return "onnx" if ".onnx" in path.suffixes else "other"
    flat = isinstance(held, Mapping) and held and all(
        isinstance(name, str) and name != "__metadata__" and isinstance(one, Tensor) and holds(one) for name, one in held.items()
    )
    return "safetensors" if flat else "torch"


def _tensors(held: Any) -> Mapping[str, Tensor]:
    if not isinstance(held, Mapping) or not all(isinstance(name, str) and isinstance(one, Tensor) for name, one in held.items()):
        found = f"a {type(held).__name__} was given to save as safetensors"
        raise UsageError(found, want="tensors by name", fix="Give content='torch'")
    return held
