"""Models named in code: `package.module:attr` and `path/to/file.py:attr`, with weights from a file that runs none."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from hauberk.core.errors import HauberkError, ModelError, nearest
from hauberk.io.hostile import existing, first_line


def named_in_code(source: str) -> bool:
    """Return whether a source reads as `package.module:attr` or `file.py:attr`."""
    place, colon, attribute = source.rpartition(":")
    named = all(part.isidentifier() for part in attribute.split("."))
    return bool(colon) and named and (place.endswith(".py") or all(part.isidentifier() for part in place.split(".")))


def from_code(source: str) -> tuple[Any, list[Path]]:
    """Return the model that `source` names, and the files it came from. Classes, and functions that need no argument, are called.

    Raises:
        ModelError: when the module, the attribute or the call fails; the cause is named.
    """
    with _importable(_folder(source)):
        found, files = _find(source, "a torch module, or a function that makes one")
        # A function of one argument is the model itself; one that needs none makes it.
        if isinstance(found, type) or (_is_function(found) and (_takes(found, 0) or not _takes(found, 1))):
            found = _call(found, source)
    return found, files


def function_from_code(source: str, *, arguments: int, want: str) -> Any:
    """Return the function that `source` names, itself, not called.

    Arguments:
        source: `package.module:attr` or `file.py:attr`.
        arguments: how many it has to take, by position.
        want: what is expected, for the error.

    Raises:
        ModelError: when the module or the attribute fails, or it does not take so many arguments.
    """
    if not named_in_code(source):
        raise ModelError(f"'{source}' names no function", want=f"package.module:attr or file.py:attr, {want}")
    with _importable(_folder(source)):
        found, _ = _find(source, want)
    if not callable(found) or not _takes(found, arguments):
        raise ModelError(f"{source} is no function of {arguments} arguments", want=want)
    return found


def _folder(source: str) -> Path:
    place = source.rpartition(":")[0]
    return existing(place, "Python file").resolve().parent if place.endswith(".py") else Path.cwd()


def _find(source: str, want: str) -> tuple[Any, list[Path]]:
    place, _, attribute = source.rpartition(":")
    file = existing(place, "Python file").resolve() if place.endswith(".py") else None
    module = _import(place, file)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [name for name in dir(found) if not name.startswith("_")]
            raise ModelError(f"{place} has no '{attribute}'", want=want, fix=nearest(part, known))
        found = getattr(found, part)
    made_in = file or getattr(module, "__file__", None)
    return found, [Path(made_in)] if made_in else []


def _import(place: str, file: Path | None) -> ModuleType:
    try:
        if file is None:
            return importlib.import_module(place)
        # The name tells files of the same stem apart, and lets worker processes find the classes again.
        name = f"hauberk_model_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    except HauberkError:
        raise
    except Exception as error:
        raise ModelError(
            f"{place} cannot be imported ({type(error).__name__}: {first_line(error)})",
            want="package.module:attr or file.py:attr", fix="Run from the folder that holds the package, or install it",
        ) from error


def _is_function(found: Any) -> bool:
    return callable(found) and not isinstance(found, nn.Module) and not hasattr(found, "predict") and not hasattr(found, "access")


def _takes(function: Any, arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*range(arguments))
    except (TypeError, ValueError):
        return False
    return True


def _call(factory: Any, source: str) -> Any:
    try:
        made = factory()
    except HauberkError:
        raise
    except Exception as error:
        raise ModelError(
            f"{source} was called and failed ({type(error).__name__}: {first_line(error)})",
            want="a module, or a function without arguments that makes one", fix="Give a function that needs no arguments",
        ) from error
    if not callable(made) and not hasattr(made, "predict"):
        want = "a torch module, a function of a batch, or an estimator"
        raise ModelError(f"{source} returned {type(made).__name__}", want=want)
    return made


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules beside the model be imported, as Python itself does for a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
