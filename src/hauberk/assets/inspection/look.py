"""One look at a model file: what it is, what it holds, whether it is encrypted, what a scan says. Nothing of it is loaded."""

from __future__ import annotations

import dataclasses
import io
import math
import pickle
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from hauberk.assets.encryption.access import describe, is_encrypted
from hauberk.assets.files import sha256
from hauberk.assets.inspection.gguf import read_gguf
from hauberk.assets.inspection.kinds import Described, Layer, layers
from hauberk.assets.inspection.objects import Found, Row, walk
from hauberk.assets.inspection.onnx import read_onnx
from hauberk.assets.scan import ScanResult, scan_file
from hauberk.assets.tensors.inert import follow
from hauberk.assets.tensors.npz import npy_header, read_npz
from hauberk.assets.tensors.safetensors import read_safetensors
from hauberk.assets.tensors.torch_zip import Archive
from hauberk.core.errors import HauberkError, UsageError

LARGEST_PICKLE = 256 << 20
TORCH_MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass
class Inspection:
    """What a model file holds.

    Arguments:
        path, size, digest: the file, its bytes, its SHA-256.
        format: what it is.
        tensors: names, types and shapes, in the file's order.
        classes: by place in a pickled object, the class named there.
        facts: what else the file says of itself.
        notes: what could not be looked into, and why.
        encrypted: whether it is an encrypted model, of which nothing more can be said without the key.
        scan: the verdict of the scanner.
    """

    path: str
    size: int
    digest: str
    format: str
    scan: ScanResult
    tensors: list[Described] = dataclasses.field(default_factory=list)
    classes: dict[str, str] = dataclasses.field(default_factory=dict)
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    encrypted: bool = False

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(one.shape) for one in self.tensors)

    @property
    def dtypes(self) -> dict[str, int]:
        """Elements by type, the commonest first."""
        counts: Counter[str] = Counter()
        for one in self.tensors:
            counts[one.dtype] += math.prod(one.shape)
        return dict(counts.most_common())

    def layers(self) -> list[Layer]:
        """Return the layers, by name and inferred kind."""
        return layers(self.tensors, self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "path": self.path, "bytes": self.size, "sha256": self.digest, "format": self.format, "encrypted": self.encrypted,
            "parameters": self.parameters, "dtypes": self.dtypes, "facts": self.facts, "notes": self.notes,
            "layers": [dataclasses.asdict(one) for one in self.layers()],
            "tensors": [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in self.tensors],
            "scan": {"verdict": self.scan.level.words, "issues": [
                {"level": one.level.words, "where": one.where, "what": one.what} for one in self.scan.issues
            ]},
        }


def inspect_file(path: str | Path) -> Inspection:
    """Return what a model file holds; no code of it is run, and no tensor is read but to hash the file.

    Arguments:
        path: safetensors, a torch zip (state dict or whole module), legacy torch, pickle, npz, npy, ONNX or GGUF.

    Raises:
        UsageError: when there is no such file. What cannot be looked into is a note.
    """
    place = Path(path)
    if not place.is_file():
        raise UsageError(f"{place} is not a file", want="a model file")
    with place.open("rb") as file:
        head = file.read(16)
    made = Inspection(str(place), place.stat().st_size, sha256(place), "unknown", scan_file(place))
    made.format = made.scan.format
    try:
        if is_encrypted(place):
            made.encrypted, made.format = True, "encrypted by hauberk"
            made.facts = _sealed(place)
        else:
            _read(place, head, made)
    except HauberkError as error:
        made.notes.append(error.problem)
    return made


def _sealed(place: Path) -> dict[str, str]:
    """Return what the header of an encrypted file says; none of it is proven without the key."""
    told = describe(place)
    keys = ", ".join(f"{kind} {name}".strip() for kind, name in told.keys[:8])
    return {"content (said)": told.content, "cipher (said)": told.cipher, "opens for (said)": keys}


def _read(place: Path, head: bytes, made: Inspection) -> None:
    if head.startswith(b"PK\x03\x04"):
        _archive(place, made)
    elif head.startswith(b"GGUF"):
        made.format = "gguf"
        rows, made.facts = read_gguf(place)
        made.tensors = [*rows]
    elif head.startswith(b"\x93NUMPY"):
        made.format = "npy"
        with place.open("rb") as file:
            dtype, shape, _ = npy_header(file, str(place))
        made.tensors = [Row(place.stem, dtype.str.lstrip("<|=>"), shape)]
    elif head[8:9] == b"{" and made.scan.format in ("safetensors", "unknown"):
        made.format = "safetensors"
        made.tensors = [*read_safetensors(place)]
    elif made.scan.format == "onnx" or place.suffix == ".onnx":
        made.format = "onnx"
        rows, made.facts = read_onnx(place)
        made.tensors = [*rows]
    elif made.scan.format == "pickle":
        _pickle(place, made)
    else:
        made.notes.append("the format is not one that is looked into")


def _archive(place: Path, made: Inspection) -> None:
    try:
        with zipfile.ZipFile(place) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        made.notes.append(f"it is a broken archive ({error})")
        return
    if names and all(name.endswith(".npy") for name in names):
        made.format = "npz"
        made.tensors = [*read_npz(place)]
    elif any(name.endswith("/data.pkl") for name in names):
        made.format = "torch"
        if any("/code/" in name for name in names):
            made.format = "torchscript"
        _take(made, walk(Archive(place).value))
    else:
        made.notes.append(f"an archive of {len(names)} members that is neither torch's nor numpy's")


def _pickle(place: Path, made: Inspection) -> None:
    if made.size > LARGEST_PICKLE:
        made.notes.append(f"a pickle of {made.size} bytes is too large to follow")
        return
    content = place.read_bytes()
    value = follow(content, str(place))
    if value == TORCH_MAGIC:
        made.format = "torch (legacy)"
        content = content[_ends(content) :]
        for _ in range(2):  # version and system
            content = content[_ends(content) :]
        value = follow(content, str(place))
    _take(made, walk(value))


def _ends(content: bytes) -> int:
    """Return where the first pickle of a stream ends."""
    stream = io.BytesIO(content)
    try:
        import pickletools

        for opcode, _, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                break
    except (ValueError, pickle.UnpicklingError) as error:
        raise UsageError(f"a pickle that cannot be followed ({str(error)[:80]})", want="a whole file") from error
    return stream.tell()


def _take(made: Inspection, found: Found) -> None:
    made.tensors, made.classes = [*found.tensors], found.classes
    if not found.complete:
        made.notes.append("the object has more parts than were walked")
