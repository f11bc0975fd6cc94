"""Opening files from Python code only after a scan: one file (`safe_load`), or every pickle of the process (`guard_pickle`)."""

from __future__ import annotations

import contextlib
import io
import pickle
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from hauberk.assets.scan.allowlist import Use, allowed_names, canonical, judge
from hauberk.assets.scan.compressed import is_compressed
from hauberk.assets.scan.lazy import METHODS
from hauberk.assets.scan.limits import Limits
from hauberk.assets.scan.pickles import follow
from hauberk.assets.scan.scanner import Scan, scan_bytes
from hauberk.assets.scan.verdict import Level, ScanResult
from hauberk.core.errors import ModelError, UnsafeFile, UsageError

_Unpickler = pickle.Unpickler  # the class itself, whatever is put in its place later
_FAILS = (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, EOFError, AttributeError, ImportError)
_state = threading.local()
_guards: list[Guard] = []


def safe_load(path: str | Path, *, limits: Limits | None = None, allow: Iterable[str] = ()) -> Any:
    """Return what a model file holds, read in a way that cannot run code, after a scan of the very bytes that are read.

    Arguments:
        path: safetensors (a dict of tensors), a torch file (by `weights_only`, on the CPU), npy and npz (without pickles), or a
            pickle or joblib file of data and listed framework objects, plain or compressed. It is read into memory as a whole.
        limits: how much the scan may spend; None takes the defaults.
        allow: names that you vouch for, `module:name`.

    Raises:
        UnsafeFile: naming the finding, its place and the next step, when the file is not safe.
        ModelError: when it cannot be read, or is of a format that has no loader here.
    """
    place = Path(path)
    try:
        content = place.read_bytes()
    except OSError as error:
        raise ModelError(f"{place} cannot be read ({error.strerror or error})", want="a model file") from error
    names = tuple(allow)
    result = scan_bytes(content, name=str(place), limits=limits, allow=names)
    if not result.safe:
        raise refusal(result)
    with suspended():
        return _load(content, result, allowed_names(names))


def _load(content: bytes, result: ScanResult, names: frozenset[str]) -> Any:
    import numpy as np
    import torch

    source = io.BytesIO(content)
    try:
        if result.format == "safetensors":
            from safetensors.torch import load

            return load(content)
        if result.format == "npy":
            return np.load(source, allow_pickle=False)
        if result.format == "zip" and _holds_arrays(content):
            with np.load(source, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        if result.format == "zip" or content.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
            return torch.load(source, map_location="cpu", weights_only=True)
        if result.format in ("pickle", "compressed"):
            if is_compressed(content[:64]) or b"NumpyArrayWrapper" in content:
                import joblib

                return joblib.load(source)
            return _Listed(source, names).load()
    except _FAILS as error:
        # torch's own message advises to load the file without its lock.
        told = " ".join(str(error).split())
        why = "torch's weights_only refuses it" if told.startswith("Weights only load failed") else told[:200]
        raise ModelError(
            f"{result.path} is safe, and cannot be loaded without code ({why})",
            want="tensors, arrays and plain values", fix="Convert it: hauberk convert FILE --safe",
        ) from error
    raise ModelError(f"{result.path} is {result.format}, which has no loader here",
                     want="safetensors, torch, npy, npz, pickle or joblib", fix="Open it with hauberk.load_model")


def _holds_arrays(content: bytes) -> bool:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def refusal(result: ScanResult) -> UnsafeFile:
    """Return the one error for a file that is not safe: the worst finding, its place, and what to do."""
    first = result.issues[0] if result.issues else None
    why = first.what if first is not None else "it makes objects"
    where = f" at {first.where}" if first is not None and first.where else ""
    more = f" (and {len(result.issues) - 1} more findings)" if len(result.issues) > 1 else ""
    return UnsafeFile(
        f"{result.path} was not opened: {result.level.words}, {why}{where}{more}", want="safe data or safe framework objects",
        fix="Keep its numbers alone: hauberk convert FILE --safe; or allow a name that you vouch for: allow=['module:name']",
    )


class _Listed(_Unpickler):
    """An unpickler that imports listed names alone: a second lock behind the scan."""

    def __init__(self, source: Any, names: frozenset[str], **options: Any) -> None:
        super().__init__(source, **options)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        """Import a listed name."""
        if canonical(module, name) == ("builtins", "getattr"):
            return _lazy_method
        ruling = judge(module, name, allowed=self._names)
        if ruling.level is not Level.SAFE or ruling.use is Use.NOTHING:
            raise UnsafeFile(f"the pickle imports {module}.{name}"[:300], want="listed names", fix="Scan it: hauberk scan FILE")
        return super().find_class(module, name)


def _lazy_method(owner: object, name: str) -> Any:
    """Stand for `getattr` where the one use that the scan lets pass is carried out."""
    from torch.nn.modules.lazy import LazyModuleMixin

    if name not in METHODS or not isinstance(owner, LazyModuleMixin) or vars(owner):
        raise UnsafeFile(f"the pickle looks up {name!r}"[:300], want="a method of a lazy layer", fix="Scan it: hauberk scan FILE")
    return getattr(owner, name)


class Guard:
    """What `guard_pickle` yields: how many loads were let through and refused."""

    def __init__(self, names: tuple[str, ...], limits: Limits | None) -> None:
        self.names, self.limits, self.passed, self.refused = names, limits, 0, 0

    def check(self, result: ScanResult) -> None:
        """Count a verdict, and raise UnsafeFile where it is not safe."""
        if result.safe:
            self.passed += 1
            return
        self.refused += 1
        raise refusal(result)

    def check_stream(self, source: Any) -> None:
        """Judge the pickle that a seekable stream stands at, and leave the stream where it stood."""
        here = source.tell()
        result = ScanResult(str(getattr(source, "name", "stream")), format="pickle")
        scan = Scan(result, self.limits or Limits(), self.names)
        try:
            follow(scan, source, "")
        except Exception as error:  # whatever hostile bytes lead to
            scan.issue(Level.UNVERIFIABLE, "", str(error)[:200] or type(error).__name__)
        result.issues.sort(key=lambda issue: -issue.level)
        source.seek(here)
        self.check(result)


class GuardedUnpickler(_Unpickler):
    """`pickle.Unpickler` while a guard is on: the pickle is scanned before its first opcode is run."""

    def __init__(self, file: Any, **options: Any) -> None:
        seekable = getattr(file, "seekable", None)
        self._source = file if seekable is not None and seekable() else io.BytesIO(file.read())
        super().__init__(self._source, **options)

    def load(self) -> Any:
        """Scan, then load."""
        if _guards and not getattr(_state, "off", False):
            _guards[-1].check_stream(self._source)
        return super().load()


@contextlib.contextmanager
def guard_pickle(*, allow: Iterable[str] = (), limits: Limits | None = None) -> Iterator[Guard]:
    """Send every pickle that this process loads through the scan; the functions are put back on exit.

    `pickle.load`, `pickle.loads`, `pickle.Unpickler`, `torch.load`, `joblib.load` and `numpy.load` with pickles are guarded, in
    all threads, for whoever calls them by these names. A module that took one of them before (`from pickle import loads`), or
    reads pickles in C by itself, is not reached: this is a net under your code, not a sandbox.

    Arguments:
        allow: names that you vouch for, `module:name`.
        limits: how much each scan may spend; None takes the defaults.

    Yields:
        The guard, with `passed` and `refused`.

    Raises:
        UnsafeFile: out of the guarded call, naming the finding.
    """
    guard = Guard(tuple(allow), limits)
    allowed_names(guard.names)  # a name that cannot be read is refused now, not at the first file
    with contextlib.ExitStack() as stack:
        for owner, name, made in _guarded(guard):
            before = getattr(owner, name)
            stack.callback(setattr, owner, name, before)
            setattr(owner, name, made(before))
        _guards.append(guard)
        stack.callback(_guards.remove, guard)
        yield guard


@contextlib.contextmanager
def suspended() -> Iterator[None]:
    """No guard in this thread: what is loaded inside was scanned already."""
    before, _state.off = getattr(_state, "off", False), True
    try:
        yield
    finally:
        _state.off = before


def _guarded(guard: Guard) -> list[tuple[Any, str, Callable[[Any], Any]]]:
    import numpy as np
    import torch

    def whole(before: Any) -> Any:
        def load(file: Any, *args: Any, **options: Any) -> Any:
            plain = before is np_load and not options.get("allow_pickle", len(args) > 1 and args[1])
            if plain or getattr(_state, "off", False):
                return before(file, *args, **options)
            content = _content(file)
            name = str(file) if isinstance(file, (str, Path)) else "stream"
            guard.check(scan_bytes(content, name=name, limits=guard.limits, allow=guard.names))
            with suspended():
                return before(io.BytesIO(content), *args, **options)

        return load

    def one(before: Any) -> Any:
        return lambda file, **options: GuardedUnpickler(file, **options).load()

    def text(before: Any) -> Any:
        return lambda data, /, **options: GuardedUnpickler(io.BytesIO(bytes(data)), **options).load()

    np_load = np.load
    found: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (pickle, "load", one), (pickle, "loads", text), (pickle, "Unpickler", lambda before: GuardedUnpickler),
        (torch, "load", whole), (np, "load", whole),
    ]
    with contextlib.suppress(ImportError):
        import joblib

        found.append((joblib, "load", whole))
    return found


def _content(file: Any) -> bytes:
    """Return the bytes that a loader would read, from a path or from a stream that then stands at its end."""
    if hasattr(file, "read"):
        return bytes(file.read())
    try:
        return Path(file).read_bytes()
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(f"{str(file)[:200]} cannot be read ({error})", want="a file or a path") from error
