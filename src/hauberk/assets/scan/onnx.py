"""ONNX: no Python code, but it may name files to read and operators that a plug-in library would run."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.verdict import Level, Unverifiable

# Fields of ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto that lead to names, by message.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _ENTRY, _OPSET, _FUNCTION, _SPARSE, _TRAINING = (
    "model", "graph", "node", "attribute", "tensor", "entry", "opset", "function", "sparse", "training"
)
_LEADS: dict[str, dict[int, str]] = {
    _MODEL: {7: _GRAPH, 8: _OPSET, 20: _TRAINING, 25: _FUNCTION}, _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _FUNCTION: {7: _NODE, 9: _OPSET, 11: _ATTRIBUTE},
    _NODE: {5: _ATTRIBUTE}, _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR}, _TENSOR: {13: _ENTRY}, _ENTRY: {}, _OPSET: {},
}
_DOMAINS = {b"", b"ai.onnx", b"ai.onnx.ml", b"ai.onnx.preview.training", b"com.microsoft", b"pkg.onnxscript.torch_lib",
            b"pkg.onnxscript.torch_lib.common", b"pkg.torch"}
# Operators of a known domain that run other code: Python, a library, or a blob compiled for one machine.
_RUNNING = {b"PythonOp", b"PythonOpGrad", b"ATen", b"ATenOp", b"EPContext", b"PyOp", b"TritonOp", b"Snpe"}
_TEXTS = {_ENTRY: (1, 2), _OPSET: (1,), _NODE: (4, 7)}
Field = tuple[int, int, int, int]


def _looks(head: bytes, size: int) -> bool:
    # ir_version is written first: field 1, a small number; then a text field.
    return len(head) > 3 and head[0] == 0x08 and 1 <= head[1] <= 30 and head[2] in (0x12, 0x1A, 0x22, 0x3A, 0x42)


@file_format("onnx", _looks, carries_code=False, rank=5)
def scan_onnx(scan: Scan, source: BinaryIO, where: str) -> None:
    """Follow the wire format to its last byte; judge file names and operator domains."""
    size = source.seek(0, io.SEEK_END)
    left = [(_MODEL, 0, size, 0)]
    graphs = 0
    while left:
        message, start, end, depth = left.pop()
        if depth > 64:
            raise Unverifiable("graphs nested deeper than 64")
        pairs: dict[int, bytes] = {}
        for number, kind, begin, stop in _fields(scan, source, start, end):
            leads = _LEADS[message].get(number)
            graphs += leads == _GRAPH
            if leads is not None and kind == 2:
                left.append((leads, begin, stop, depth + 1))
            elif message in (_ENTRY, _OPSET, _NODE) and kind == 2 and number in _TEXTS[message]:
                if stop - begin > 65_536:
                    raise Unverifiable(f"a name of {stop - begin} bytes")
                source.seek(begin)
                pairs[number] = source.read(stop - begin)
        if message == _ENTRY and pairs.get(1) == b"location":
            _location(scan, pairs.get(2, b""), where)
        if message == _NODE and pairs.get(4) in _RUNNING:
            scan.issue(Level.UNKNOWN, where, f"uses the operator {pairs[4].decode()}, which runs code that is not in the graph")
        domain = pairs.get(1 if message == _OPSET else 7)
        if message in (_OPSET, _NODE) and domain is not None and domain not in _DOMAINS:
            scan.issue(Level.UNKNOWN, where, f"uses operators of the domain {domain[:80].decode('utf-8', 'replace')!r}")
    if not graphs:
        raise Unverifiable("it holds no graph")


def _location(scan: Scan, text: bytes, where: str) -> None:
    parts = text.replace(b"\\", b"/").split(b"/")
    shown = text[:120].decode("utf-8", "replace")
    if text.startswith((b"/", b"\\")) or b".." in parts or b":" in text or b"\0" in text or not text.strip():
        scan.issue(Level.DANGEROUS, where, f"reads the file {shown!r} outside its folder")
    elif scan.folder is not None and len(text) < 4096:
        # A link beside the model would lead the reader out as well as a path does.
        folder = scan.folder.resolve()
        real = Path(folder, shown).resolve()
        if not real.is_relative_to(folder):
            scan.issue(Level.DANGEROUS, where, f"reads the file {shown!r}, a link that leads outside its folder")
        elif real.exists() and not real.is_file():
            scan.issue(Level.UNVERIFIABLE, where, f"reads {shown!r}, which is no regular file")


def _fields(scan: Scan, source: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """Yield (number, wire type, begin, stop) of the fields of one message."""
    place = start
    while place < end:
        scan.meter.step()
        key, place = _varint(source, place, end)
        if key >= 2**32:  # some readers drop the bits above, and see another field
            raise Unverifiable(f"a field number of {key.bit_length() - 3} bits at byte {place}")
        number, kind = key >> 3, key & 7
        if kind == 0:
            _, stop = _varint(source, place, end)
        elif kind == 1:
            stop = place + 8
        elif kind == 5:
            stop = place + 4
        elif kind == 2:
            length, place = _varint(source, place, end)
            stop = place + length
        else:
            raise Unverifiable(f"wire type {kind} at byte {place}")
        if stop > end or number == 0:
            raise Unverifiable(f"field {number} at byte {place} leaves its message")
        yield number, kind, place, stop
        place = stop


def _varint(source: BinaryIO, place: int, end: int) -> tuple[int, int]:
    source.seek(place)
    value = 0
    for index, byte in enumerate(source.read(min(10, end - place))):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, place + index + 1
    raise Unverifiable(f"a number at byte {place} has no end")
