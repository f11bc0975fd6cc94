"""From a file that may run code to one that cannot: numbers go to safetensors, plain values to JSON, and the rest is named.

The pickle is followed on stand-ins, as in a scan; no part of it is imported or called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from hauberk.assets.files import sha256
from hauberk.assets.scan.arrays import MAGIC, read_header
from hauberk.assets.scan.compressed import is_compressed, unpack
from hauberk.assets.scan.flatten import Flattened, LeftOut, flatten
from hauberk.assets.scan.limits import Limits
from hauberk.assets.scan.machine import Machine
from hauberk.assets.scan.pickles import TORCH_MAGIC, follow, legacy
from hauberk.assets.scan.rebuild import PlacedStorages, Storages, ZipStorages, check_order, stream
from hauberk.assets.scan.scanner import Scan, scan_file
from hauberk.assets.scan.verdict import ScanResult, Unverifiable
from hauberk.core.errors import ModelError, UnsafeFile
from hauberk.core.files import cannot_write, write_whole
from hauberk.io.zip_bones import check_bones

FORMAT = "hauberk-converted/1"


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was kept of a file, and what was not.

    Arguments:
        tensors: by their names, as written to the safetensors file.
        values: plain numbers, texts and lists, as written to the JSON beside it.
        left_out: what is in neither, and why.
        source: the file read, and its SHA-256.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    left_out: list[LeftOut]
    source: str
    sha256: str


def sidecar(output: Path) -> Path:
    """Return the place of the JSON beside a converted file."""
    return output.with_name(output.name + ".json")


def convert_safe(path: str | Path, output: str | Path, *, limits: Limits | None = None) -> Conversion:
    """Write the numbers of a model file as safetensors, and beside it a JSON of the plain values and of what was left out.

    Arguments:
        path: a torch file (zip or legacy), a pickle, a joblib file, npy or npz, plain or compressed; nothing in it is executed.
        output: the safetensors file; the JSON is `output` with `.json` behind it. Both are replaced where they are there.
        limits: how much to spend; None takes the defaults.

    Returns:
        What was written. Arrays of objects are opened up: their numbers are kept under the path that leads to them.

    Raises:
        UnsafeFile: when the file cannot be followed to its end.
        ModelError: when it holds no numbers.
        UsageError: when the output cannot be written.
    """
    source, place = Path(path), Path(output)
    scan = Scan(ScanResult(str(source)), limits or Limits())
    try:
        found = _read(source, scan)
    except OSError as error:
        raise ModelError(f"{source} cannot be read ({error.strerror or error})", want="a model file") from error
    except Exception as error:  # whatever hostile bytes lead to
        why = str(error) if isinstance(error, Unverifiable) else f"it is malformed ({type(error).__name__}: {str(error)[:120]})"
        raise UnsafeFile(
            f"{source} cannot be followed: {why}", want="a whole torch, pickle, joblib, npy or npz file",
            fix="Have the weights alone saved as safetensors where the model comes from",
        ) from error
    refused = [LeftOut(issue.where, f"{issue.level.words}: {issue.what}") for issue in scan.result.issues]
    if not found.tensors:
        said = f"; the scan says: {refused[0].what}" if refused else ""
        raise ModelError(f"{source} holds no tensors or arrays to keep{said}", want="a file with weights in it")
    made = Conversion(found.tensors, found.values, [*refused, *found.left_out], str(source), sha256(source))
    _write(made, place)
    return made


def _write(made: Conversion, place: Path) -> None:
    from safetensors.torch import save_file

    handle, name = tempfile.mkstemp(dir=_folder(place), prefix=f".{place.name}.")
    os.close(handle)
    try:
        save_file(made.tensors, name, {"format": "pt", "converted-from-sha256": made.sha256})
        assert scan_file(name).safe  # what is written is what was promised
        os.chmod(name, 0o644)
        os.replace(name, place)
    except OSError as error:
        raise cannot_write(place, error) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
    name = os.fsencode(Path(made.source).name).decode("utf-8", "replace")  # JSON holds no bytes that are no character
    note = {
        "format": FORMAT, "source": name, "sha256": made.sha256, "tensors": sorted(made.tensors),
        "values": made.values, "left_out": [dataclasses.asdict(one) for one in made.left_out],
    }
    write_whole(sidecar(place), json.dumps(note, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _folder(place: Path) -> Path:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place.parent):
            return place.parent
    except OSError as error:
        raise cannot_write(place, error) from error


def _read(path: Path, scan: Scan) -> Flattened:
    with path.open("rb") as file, contextlib.ExitStack() as kept:
        source: BinaryIO = file
        while is_compressed(head := _head(source)):
            scan.depth += 1
            if scan.depth > scan.limits.depth:
                raise Unverifiable(f"parts nested deeper than {scan.limits.depth}")
            whole = kept.enter_context(tempfile.TemporaryFile())
            unpack(scan, source, whole)
            source = whole
        made = Flattened(room=2**26 + 4 * source.seek(0, io.SEEK_END))
        if head.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(source) as archive:
                check_bones(source, archive)
                _archive(scan, archive, made)
        elif head.startswith(MAGIC):
            _npy(scan, source, "", made)
        else:
            value, storages = _pickle(scan, source)
            flatten(scan, value, made, storages, source)
        return made


def _archive(scan: Scan, archive: zipfile.ZipFile, made: Flattened) -> None:
    tops = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) == 1:
        (top,) = tops
        value, storages = _torch(scan, archive, top)
        flatten(scan, value, made, storages, None)
        known = tuple(f"{top}/{one}" for one in ("data/", "data.pkl", ".data/", "version", "byteorder", ".format", ".storage"))
        for name in archive.namelist():
            if not name.startswith(known):
                made.left_out.append(LeftOut(name[:200], "a member of the archive that holds no weights"))
        return
    arrays = [name for name in archive.namelist() if name.endswith(".npy")]
    if not arrays:
        raise Unverifiable("the archive is neither of torch nor of NumPy")
    for name in archive.namelist():
        if name not in arrays:
            made.left_out.append(LeftOut(name[:200], "a member of the archive that is no array"))
            continue
        with archive.open(name) as packed, tempfile.TemporaryFile() as whole:
            size = 0
            while part := packed.read(2**18):
                size += len(part)
                scan.meter.spend(len(part))
                if size > 2**20 and size > scan.limits.ratio * max(archive.getinfo(name).compress_size, 1):
                    raise Unverifiable(f"{name[:80]} unpacks to more than {scan.limits.ratio} times its size")
                whole.write(part)
            whole.seek(0)
            _npy(scan, whole, name.removesuffix(".npy"), made)


def _torch(scan: Scan, archive: zipfile.ZipFile, top: str) -> tuple[Any, Storages]:
    check_order(archive, top)
    content = archive.read(f"{top}/data.pkl")
    scan.meter.spend(len(content))
    scan.archive = (archive, top)
    return Machine(scan, f"{top}/data.pkl").run(stream(content)), ZipStorages(archive, top)


def _npy(scan: Scan, source: BinaryIO, name: str, made: Flattened) -> None:
    import numpy as np

    source.seek(0)
    shape, size = read_header(source)
    start = source.tell()
    if size is not None and start + math.prod(shape) * size != source.seek(0, io.SEEK_END):
        raise Unverifiable(f"an array of shape {str(shape)[:80]} does not end where the file does")
    source.seek(start)
    if size is None:
        flatten(scan, follow(scan, source, name), made, PlacedStorages(source), source, name)
    else:
        source.seek(0)
        made.array(np.load(source, allow_pickle=False), name)


def _pickle(scan: Scan, source: BinaryIO) -> tuple[Any, Storages]:
    source.seek(0)
    value = follow(scan, source, "")
    if isinstance(value, int) and value == TORCH_MAGIC:
        value, places = legacy(scan, source, "")
        return value, PlacedStorages(source, places)
    return value, PlacedStorages(source)


def read_bytes(content: bytes) -> tuple[Any, Storages]:
    """Return the stand-in and the storages of a torch file in memory: a storage that is pickled inside a plain pickle."""
    scan, source = Scan(ScanResult("nested"), Limits()), stream(content)
    if content.startswith(b"PK\x03\x04"):
        archive = zipfile.ZipFile(source)
        check_bones(source, archive)
        tops = [one.removesuffix("/data.pkl") for one in archive.namelist() if one.endswith("/data.pkl")]
        return _torch(scan, archive, tops[0])
    return _pickle(scan, source)


def _head(source: BinaryIO) -> bytes:
    source.seek(0)
    head = source.read(64)
    source.seek(0)
    return head
