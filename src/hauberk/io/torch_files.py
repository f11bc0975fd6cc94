"""Models and weights in files that torch writes: exported programs, TorchScript, state dicts, pickled modules."""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError, UnsafeFile
from hauberk.io.batches import FixedBatch
from hauberk.io.hostile import check_archive, existing, first_line, is_zip
from hauberk.io.pt2_scan import scan_pt2
from hauberk.io.script_scan import check_script_graphs, check_script_text

_BROKEN = (RuntimeError, EOFError, ValueError, KeyError, OSError, TypeError, AttributeError, IndexError, AssertionError)


def load_exported(path: Path, *, trust: bool) -> tuple[nn.Module, list[str]]:
    """Return the module of an exported program (.pt2), able to take any batch, and what there is to say about it.

    Raises:
        ModelError: when the file is broken, or takes more than one input.
        UnsafeFile: when opening it would run code and it is not trusted.
    """
    if not trust:
        scan_pt2(path)
    else:
        check_archive(path)
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(path)
            module = program.module()
    except Exception as error:  # torch raises errors of many kinds for a broken file
        raise ModelError(
            f"{path} cannot be opened as an exported program ({first_line(error)})", want="a file that torch.export.save wrote",
            fix="Export the model again with the torch installed here",
        ) from error
    finally:
        log.setLevel(level)
    notices, inputs = [], [str(name) for name in program.graph_signature.user_inputs]
    if len(inputs) != 1:
        raise ModelError(f"{path} takes {len(inputs)} inputs: {', '.join(inputs)}", want="one, the batch of samples")
    made: nn.Module = module
    size = _fixed_size(program, inputs[0])
    if size is not None:
        made = FixedBatch(module, size)
        notices.append(f"the program was exported for batches of {size}: inputs go in parts of {size}, the last one filled up")
    if _trains(program):
        notices.append("the program was exported in training mode, so its answers may depend on chance: export model.eval()")
    return settled(made), notices


def load_torch_file(path: Path, *, trust: bool) -> tuple[nn.Module, list[str]]:
    """Return the module in a .pt or .pth file, TorchScript or (trusted) pickled, and what there is to say about it.

    Raises:
        ModelError: when it is broken, or holds weights alone.
        UnsafeFile: when opening it would run code and it is not trusted.
    """
    if is_zip(path):
        names = [name.split("/", 1)[-1] for name in check_archive(path)]
        if "constants.pkl" in names:
            return _load_script(path, trust=trust)
    held = _unpickled(path, trust=trust)
    if isinstance(held, nn.Module):
        return held, ["the model was unpickled from a file that can run code; it was trusted by your own word"]
    raise ModelError(
        f"{path} holds {_describe(held)} and no model", want="a model",
        fix=f"Name the code as well: path = 'package.module:attr' with weights = '{path.name}'",
    )


def load_weights(module: nn.Module, source: str | Path, *, trust: bool) -> Path:
    """Load safetensors or a state dict into a module, and return the file.

    Raises:
        ModelError: when the file is broken, or its names and shapes are not the module's.
        UnsafeFile: when it holds more than tensors and is not trusted.
    """
    put_weights(module, read_state(source, trust=trust), str(source))
    return Path(source)


def put_weights(module: nn.Module, held: Any, path: str) -> None:
    """Load a state dict that came from `path` into a module. Raises ModelError when its names and shapes are not the module's."""
    state = _state_in(held, path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"the weights in {path} do not fit {type(module).__name__}: {_misfit(module, state) or first_line(error)}",
            want="the names and shapes of its own state dict", fix="Give the code and the weights of the same model",
        ) from error


def read_state(source: str | Path, *, trust: bool) -> dict[str, Tensor]:
    """Return the tensors by name in a file of safetensors, or in a state dict that torch saved.

    Raises:
        ModelError: when the file is broken, or holds no tensors by name.
        UnsafeFile: when it holds more than tensors and is not trusted.
    """
    path = existing(source, "file of weights")
    held = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _unpickled(path, trust=trust)
    return _state_in(held, str(path))


def _state_in(held: Any, path: str) -> dict[str, Tensor]:
    if isinstance(held, dict) and not any(isinstance(value, Tensor) for value in held.values()):
        inner = [key for key in ("state_dict", "model_state_dict", "model") if isinstance(held.get(key), dict)]
        held = held[inner[0]] if inner else held
    if isinstance(held, nn.Module):
        held = held.state_dict()
    if not isinstance(held, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in held.items()):
        raise ModelError(f"{path} holds {_describe(held)}", want="tensors by name: a state dict")
    return held


def settled(module: nn.Module) -> nn.Module:
    """Put a module that was loaded here in evaluation mode. Flags are set by hand: exported programs refuse `.eval()`."""
    for part in module.modules():
        part.training = False
    return module


def _load_script(path: Path, *, trust: bool) -> tuple[nn.Module, list[str]]:
    try:
        if not trust:
            check_script_text(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that TorchScript is deprecated; the notice below says it once
            script: nn.Module = torch.jit.load(str(path), map_location="cpu")
    except _BROKEN as error:
        raise ModelError(
            f"{path} cannot be opened as TorchScript ({first_line(error)})", want="a file that torch.jit.save wrote",
            fix="Export the model with torch.export.save instead",
        ) from error
    if not trust:
        check_script_graphs(path, script)
    script.eval()
    return script, ["the model is TorchScript, which torch no longer develops: export it with torch.export.save (.pt2)"]


def _unpickled(path: Path, *, trust: bool) -> Any:
    if is_zip(path):
        check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None and not is_zip(path):
            problem = f"{path} is broken, or no file that torch wrote ({first_line(error, 120)})"
            raise ModelError(problem, want="a file that torch.save wrote", fix="Save or copy it again") from error
        raise _refusal(path, f"it is a whole pickled object and asks for {found.group(1) if found else 'code'}") from error
    except _BROKEN as error:
        raise ModelError(
            f"{path} is broken or cut short ({first_line(error)})", want="a file that torch.save wrote",
            fix="Save or copy it again",
        ) from error
    except Exception as error:
        problem = f"{path} cannot be unpickled here ({type(error).__name__}: {first_line(error)})"
        raise ModelError(problem, want="a model whose code can be imported", fix="Run where its code is installed") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} is broken or cut short ({first_line(error)})", want="a safetensors file", fix="Save or copy it again"
        ) from error


def _misfit(module: nn.Module, held: dict[str, Tensor]) -> str:
    own = module.state_dict()
    for name in sorted(own.keys() & held.keys()):
        if own[name].shape != held[name].shape:
            return f"'{name}' has shape {tuple(held[name].shape)}, the model wants {tuple(own[name].shape)}"
    missing, extra = sorted(own.keys() - held.keys()), sorted(held.keys() - own.keys())
    parts = [f"{len(names)} {word}, such as '{names[0]}'" for names, word in ((missing, "missing"), (extra, "unknown")) if names]
    return "; ".join(parts)


def _fixed_size(program: Any, name: str) -> int | None:
    """Return the batch size that a program was exported with, or None when it takes any."""
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name == name:
            shape = node.meta["val"].shape
            return shape[0] if len(shape) and isinstance(shape[0], int) else None
    return None


def _trains(program: Any) -> bool:
    place = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}
    for node in program.graph.nodes:
        at = place.get(str(node.target)) if node.op == "call_function" else None
        if at is not None and len(node.args) > at and node.args[at] is True:
            return True
    return False


def _describe(held: Any) -> str:
    if isinstance(held, dict) and any(isinstance(value, Tensor) for value in held.values()):
        return f"a state dict of {len(held)} tensors"
    return f"a {type(held).__name__}"


def _refusal(path: Path, why: str) -> UnsafeFile:
    return UnsafeFile(
        f"{path} would run code when opened: {why}", want="weights alone",
        fix="Give package.module:attr with weights in safetensors; or pass trust=True (--trust) if you trust whoever made it",
    )
