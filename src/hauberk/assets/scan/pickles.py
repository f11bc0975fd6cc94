"""Pickle streams: any protocol, several in a row, torch's legacy files, and joblib's with raw arrays between the opcodes."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from hauberk.assets.scan.machine import Machine
from hauberk.assets.scan.numpy_state import items, real_dtype
from hauberk.assets.scan.plain_reading import PlainReading
from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.values import Global, Items, Made
from hauberk.assets.scan.verdict import Level, Stumble, Unverifiable

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_SIZES = {
    "Double": 8, "Long": 8, "ComplexDouble": 16, "ComplexFloat": 8, "Float": 4, "Int": 4, "QInt32": 4, "Half": 2, "BFloat16": 2,
    "Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "QInt8": 1, "QUInt8": 1, "Untyped": 1,
}
_WRAPPER = {"subclass", "shape", "order", "dtype", "allow_mmap", "numpy_array_alignment_bytes"}
# Opcodes that a pickle without a protocol header may begin with: constants, containers, marks and names.
_FIRST = frozenset(b"(cILNSVUTFGJKMX)]}PBC\x80\x82\x83\x84\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\x95\x96\x97")


def _is_pickle(head: bytes, size: int) -> bool:
    return head[0] in _FIRST


@file_format("pickle", _is_pickle, carries_code=True, rank=9)
def scan_pickles(scan: Scan, source: BinaryIO, where: str) -> None:
    """Follow all pickles of a stream to its last byte."""
    size = source.seek(0, io.SEEK_END)
    source.seek(0)
    value, count = follow(scan, source, where), 1
    if isinstance(value, int) and value == TORCH_MAGIC:
        legacy(scan, source, where)
        if source.tell() != size:
            raise Unverifiable(f"{size - source.tell()} bytes follow the last storage")
        return
    while source.tell() < size:
        follow(scan, source, where)
        scan.result.parts += 1
        count += 1
        if count > scan.limits.members:
            raise Unverifiable(f"more than {scan.limits.members} pickles in a row")


def follow(scan: Scan, source: BinaryIO, where: str) -> Any:
    """Follow one pickle from the source's place and return a stand-in for its value."""
    start = source.tell()
    skipped: list[int] = []

    def on_build(made: Made, stream: BinaryIO) -> None:
        before = stream.tell()
        _embedded(scan, made, stream, where)
        skipped.append(stream.tell() - before)

    value = Machine(scan, where, on_build).run(source)
    if any(skipped):
        # joblib steps over its arrays; plain pickle would run them. What it would meet before it stumbles counts as well.
        end = source.tell()
        source.seek(start)
        try:
            PlainReading(scan, f"{where} (read by pickle)").run(source)
        except Stumble:
            pass  # pickle ends here as well
        except Exception as error:
            scan.issue(Level.UNVERIFIABLE, where, f"plain pickle may read on where the scan cannot ({str(error)[:120]})")
        source.seek(end)
    return value


def _embedded(scan: Scan, made: Made, stream: BinaryIO, where: str) -> None:
    """Step over the raw array that joblib writes right behind its wrapper."""
    if made.of != "joblib.numpy_pickle.NumpyArrayWrapper":
        return
    if not isinstance(made.state, Items):
        raise Unverifiable("a joblib array without its description")
    keys = [key for key, _ in made.state.pairs]
    if not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise Unverifiable("a joblib array whose description has names that cannot be read, or one twice")
    if not set(keys) <= _WRAPPER:  # one of its methods, which would read the array another way
        raise Unverifiable(f"a joblib array whose description sets {sorted(set(keys) - _WRAPPER)[0][:40]!r}")
    dtype, count = real_dtype(made.state.get("dtype")), items(made.state.get("shape"))
    if dtype.hasobject:
        scan.result.parts += 1
        scan.depth += 1
        if scan.depth > scan.limits.depth:
            raise Unverifiable(f"parts nested deeper than {scan.limits.depth}")
        made.raw = follow(scan, stream, f"{where}@{stream.tell()}:object array")
        scan.depth -= 1
        return
    if made.state.get("numpy_array_alignment_bytes") is not None:
        padding = stream.read(1)
        skip(stream, padding[0] if padding else 1)
    made.raw = stream.tell()
    skip(stream, count * dtype.itemsize)


def skip(stream: BinaryIO, count: int) -> None:
    """Step over raw data. Raises Unverifiable where there is less of it."""
    here = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    if count < 0 or here + count > end:
        raise Unverifiable(f"{count} bytes of raw data are announced at byte {here}, {end - here} are there")
    stream.seek(here + count)


def legacy(scan: Scan, source: BinaryIO, where: str) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Follow torch's format of before 1.6: magic number, version, system, object, keys, then raw storages of stated sizes.

    Returns:
        A stand-in for the object, and where each storage lies: its first byte, and how many bytes it has.
    """
    for part in ("version", "system"):
        follow(scan, source, f"{where}:{part}")
    machine = Machine(scan, f"{where}:object")
    value = machine.run(source)
    keys = follow(scan, source, f"{where}:keys")
    scan.result.parts += 4
    sizes: dict[str, int] = {}
    for one in machine.persistent:
        if isinstance(one, tuple) and len(one) >= 5 and one[0] == "storage" and isinstance(one[1], Global):
            size_each = _SIZES.get(one[1].name.removesuffix("Storage"), 0)
            if not isinstance(one[2], str) or sizes.setdefault(one[2], size_each) != size_each:
                raise Unverifiable("a storage of a legacy torch file has a key that is no text, or two types")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Unverifiable("the list of storages of a legacy torch file cannot be read")
    places = {}
    for key in keys:
        count = int.from_bytes(source.read(8), "little")
        if not sizes.get(key):
            raise Unverifiable(f"storage {key[:40]!r} has a type that is not known")
        places[key] = (source.tell(), count * sizes[key])
        skip(source, count * sizes[key])
    return value, places
