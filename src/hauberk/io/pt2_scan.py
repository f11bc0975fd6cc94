"""What an exported program (.pt2) may hold to be opened without trust.

Opening such a file is not harmless by itself: torch unpickles some parts, loads compiled libraries, evaluates symbolic
expressions and guards as Python, and calls operators by name. So the file is read first, as plain JSON, and everything in it
must be of a kind known to be harmless; whatever is not, is refused.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from hauberk.core.errors import ModelError, UnsafeFile
from hauberk.io.hostile import check_archive, first_line
from hauberk.io.pt2_rules import raw_weights, troubles
from hauberk.io.zip_bones import check_file_bones


def scan_pt2(path: Path) -> None:
    """Return only when a .pt2 file holds nothing that runs code when it is opened or called.

    Raises:
        ModelError: when it is broken.
        UnsafeFile: naming what it would run.
    """
    listed = check_archive(path)
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        names = list(reader.get_all_records())
    except RuntimeError as error:
        raise ModelError(
            f"{path} is broken or cut short ({first_line(error)})", want="a file that torch.export.save wrote",
            fix="Export the model again",
        ) from error
    check_file_bones(path)
    # Two readers that see different files would let one part be checked and another be opened.
    if {name.split("/", 1)[-1] for name in listed} - {*names, ".data/version", ".data/serialization_id", "version", "byteorder"}:
        raise _refusal(path, "its directory reads in two ways")
    for name in names:
        kind = name.rsplit("/", 1)[0]
        if "aotinductor" in name or name.endswith((".so", ".pyd", ".dll", ".dylib", ".cpp", ".cubin", ".py")):
            raise _refusal(path, f"'{name}' is compiled or source code")
        if kind in ("data/weights", "data/constants") and name.endswith("_config.json"):
            _scan_payload(path, reader, name)
        elif name.endswith((".pt", ".pkl")) or "custom_obj" in name or "opaque_obj" in name:
            _scan_pickle(path, name, reader.get_record(name))
    models = [name for name in names if name.startswith("models/") and name.endswith(".json")]
    if not models:
        raise ModelError(
            f"{path} holds no exported program", want="a file that torch.export.save of torch 2.9 or newer wrote",
            fix="Export the model again, or give another form of it",
        )
    for name in models:
        program = _json(path, name, reader.get_record(name))
        _scan_program(path, program)


def _scan_payload(path: Path, reader: Any, name: str) -> None:
    content = _json(path, name, reader.get_record(name))
    config = content.get("config", {})
    plain, folder = raw_weights({name: content}), name.rpartition("/")[0]
    for entry in config.values() if isinstance(config, dict) else (None,):
        member = entry.get("path_name") if isinstance(entry, dict) else None
        if f"{folder}/{member}" not in plain:
            raise _refusal(path, f"'{member}' is a pickled object")


def _scan_pickle(path: Path, name: str, content: bytes) -> None:
    """Small parts, such as sample inputs, are pickled tensors; torch falls back to running them when the safe way fails."""
    try:
        if content:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch writes these parts in a newer protocol than it likes to read
                torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _refusal(path, f"'{name}' is a pickle of more than tensors") from error


def _scan_program(path: Path, program: dict[str, Any]) -> None:
    for _, what in troubles(program):
        raise _refusal(path, what)


def _json(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        made = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"'{name}' in {path} is not JSON ({first_line(error)})", want="an exported program") from error
    if not isinstance(made, dict):
        raise ModelError(f"'{name}' in {path} holds a {type(made).__name__}", want="an exported program")
    return made


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands twice")
    return table


def _refusal(path: Path, why: str) -> UnsafeFile:
    return UnsafeFile(
        f"{path} would run code when opened: {why}", want="an exported program of operators and weights alone",
        fix="Give package.module:attr with weights in safetensors; or pass trust=True (--trust) if you trust whoever made it",
    )
