"""Encrypted models as a plan names them: weights or an ONNX file, with the key in a variable or a key file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hauberk.assets.encryption.access import describe, is_encrypted
from hauberk.assets.encryption.keys import named_key
from hauberk.assets.encryption.reader import EncryptedReader
from hauberk.core.errors import ModelError, UsageError


def unsealed(source: Any, weights: Any, key: str, *, outputs: str = "auto") -> tuple[Any, Any, list[Path]]:
    """Return a model and weights for `load_model`, what is encrypted among them decrypted in memory, and the encrypted files.

    Arguments:
        source: as for `load_model`; the path of an encrypted ONNX file becomes a predictor.
        weights: a path or None; the path of an encrypted file becomes a state dict.
        key: env:NAME or file:PATH; empty where nothing is encrypted.
        outputs: of an ONNX model.

    Raises:
        UsageError: when a file is encrypted and no key is named, or a key is named and nothing is encrypted.
        ModelError: when an encrypted file holds something else, or does not open.
    """
    model, state = (Path(one) if isinstance(one, (str, Path)) and is_encrypted(one) else None for one in (source, weights))
    found = [one for one in (model, state) if one is not None]
    if found and not key:
        fix = 'Name it in the plan: [model] key = "env:NAME" or "file:PATH"'
        raise UsageError(f"{found[0]} is encrypted", want="its key", fix=fix)
    if key and not found:
        raise UsageError("model.key names a key, and neither model nor weights are encrypted", want="an encrypted file",
                         fix="Encrypt it: hauberk encrypt FILE --key-file KEY")
    if not found:
        return source, weights, []
    secret = named_key(key)
    try:
        if state is not None:
            weights = _state_dict(state, secret)
        if model is not None:
            source = _onnx(model, secret, outputs)
    finally:
        secret.wipe()
    return source, weights, found


def _state_dict(path: Path, key: Any) -> Mapping[str, Any]:
    from hauberk.assets.encryption.models import load_encrypted

    held = load_encrypted(path, key) if describe(path).content in ("torch", "safetensors") else None
    if not isinstance(held, Mapping):
        raise ModelError(f"{path} holds no weights", want="an encrypted state dict or safetensors")
    return held


def _onnx(path: Path, key: Any, outputs: str) -> Any:
    from hauberk.io.onnx_models import OnnxPredictor, refuse_external

    if describe(path).content != "onnx":
        raise ModelError(
            f"{path} holds {describe(path).content}", want="ONNX; other models are code, with encrypted weights",
            fix="Give package.module:attr as path, and the file as weights",
        )
    with EncryptedReader(path, key) as reader:
        content = reader.readall()
    refuse_external(content, str(path))
    return OnnxPredictor(path, outputs, (), content)
