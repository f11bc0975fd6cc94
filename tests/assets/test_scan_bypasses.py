"""Files that were made to slip past the scan: two readings of one file, states that lie, and loads that never end.

Nothing here is ever loaded; every case is bytes that go to the scanner alone.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save

from hauberk.assets.scan import Level, Limits, scan_bytes, scan_file

BENIGN = pickle.dumps({"a": 1}, 2)


def name(module: str, attribute: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute)) + b"\x93"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def four(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


EVIL = four(name("os", "system") + text("true") + b"\x85R")


def zipped(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for one, content in members:
            archive.writestr(zipfile.ZipInfo(one), content)
    return buffer.getvalue()


def object_array(stream: bytes) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return buffer.getvalue() + stream


def plain_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


# Zip archives with two directories


def local(member: str, content: bytes) -> bytes:
    head = (b"PK\x03\x04", 20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(member), 0)
    return struct.pack("<4s5H3L2H", *head) + member.encode() + content


def central(member: str, content: bytes, place: int) -> bytes:
    size = len(content)
    entry = (b"PK\x01\x02", 20, 0, 20, 0, 0, 0, 0, 33, zlib.crc32(content), size, size, len(member), 0, 0, 0, 0, 0, place)
    return struct.pack("<4s4B4H3L5H2L", *entry) + member.encode()


def end64(count: int, size: int, place: int) -> bytes:
    return struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, place)


def two_directories(*, honest: bool) -> bytes:
    """An archive whose 64-bit locator points into a raw member, where another directory lies; or at its own."""
    first, version = local("a/data.pkl", BENIGN), local("a/version", b"3\n")
    base = len(first) + len(version)
    inside = base + 30 + len("a/data/0")
    evil = local("a/data.pkl", EVIL)
    other = central("a/data.pkl", EVIL, inside) + central("a/version", b"3\n", inside + len(evil))
    hidden = evil + version + other
    place64 = inside + len(hidden)
    hidden += end64(2, len(other), inside + len(evil) + len(version))
    third = local("a/data/0", hidden)
    listed = central("a/data.pkl", BENIGN, 0) + central("a/version", b"3\n", len(first)) + central("a/data/0", hidden, base)
    start = base + len(third)
    if honest:
        place64 = start + len(listed)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place64, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return first + version + third + listed + end64(3, len(listed), start) + locator + end


def test_a_locator_that_points_elsewhere_is_not_believed() -> None:
    found = scan_bytes(two_directories(honest=False))
    assert found.level is Level.UNVERIFIABLE and "64-bit end record" in found.issues[0].what
    # The same bytes with an honest locator: the raw member begins like an archive, and is looked into.
    honest = scan_bytes(two_directories(honest=True))
    assert not any("end record" in one.what for one in honest.issues) and honest.level is not Level.SAFE


@pytest.mark.parametrize(("place", "value"), [(8, 2), (10, 9), (12, 7), (16, 3), (4, 1)])
def test_an_end_record_that_lies_is_found(place: int, value: int) -> None:
    content = bytearray(zipped([("x.npy", plain_array())]))
    assert scan_bytes(bytes(content)).level is Level.SAFE
    struct.pack_into("<H", content, len(content) - 22 + place, value)
    assert scan_bytes(bytes(content)).level is Level.UNVERIFIABLE


def test_names_that_differ_in_case_alone_are_one_to_torch() -> None:
    assert scan_bytes(zipped([("a/data.pkl", BENIGN), ("a/data/0", b"12"), ("a/DATA/0", b"34")])).level is Level.UNVERIFIABLE
    assert scan_bytes(zipped([("W.npy", plain_array()), ("w.npy", plain_array())])).level is Level.SAFE


# Files of two formats


def tar_in_bytes() -> bytes:
    """A pickle of one bytes constant that is also a tar archive, as torch's oldest format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(EVIL)
        archive.addfile(entry, io.BytesIO(EVIL))
    rest = buffer.getvalue()
    head = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    head[:9] = b"B" + struct.pack("<I", 512 + len(rest) - 5) + b"xxxx"
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return bytes(head) + rest + b"."


def archive_in_bytes() -> bytes:
    buffer = io.BytesIO(b"\0" * 5)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("a/data.pkl", EVIL)
        archive.comment = b"."
    content = bytearray(buffer.getvalue())
    content[:5] = b"B" + struct.pack("<I", len(content) - 6)
    return bytes(content)


def pickle_in_tensors(*, with_import: bool = True) -> bytes:
    """safetensors whose length and first name are also a pickle that calls."""
    length = int.from_bytes(b"\x80\x04G\x00\x00\x00\x00\x00", "little")

    def short(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    body = short(b"multiprocessing.popen_spawn_posix") + short(b"spawn.os.path.os.path.os.path.os.system") + b"q\xc2\x93"
    body += short(b"echo harmless".ljust(43)) + b"q\xc2\x85R."
    label = b"x" + (body if with_import else b"plain")
    header = b'{"' + label + b'":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    return struct.pack("<Q", length) + header + b" " * (length - len(header) - 1) + b"}" + b"\0"


POLYGLOTS = {
    "tar in a pickle": (tar_in_bytes(), "imports os.system"), "zip in a pickle": (archive_in_bytes(), "zip archive"),
    "pickle in safetensors": (pickle_in_tensors(), "opens as a pickle"),
    "pickle start in safetensors": (pickle_in_tensors(with_import=False), "opens as a pickle"),
    "safetensors for torch.load": (
        four(name("torch.storage", "_load_from_bytes") + (lambda it: b"B" + struct.pack("<I", len(it)) + it)(
            save({"w": torch.zeros(2)})) + b"\x85R"), "reads as safetensors"),
}


@pytest.mark.parametrize(("content", "what"), POLYGLOTS.values(), ids=POLYGLOTS)
def test_files_of_two_formats_cannot_be_verified(content: bytes, what: str) -> None:
    found = scan_bytes(content)
    assert found.level >= Level.UNVERIFIABLE and any(what in one.what for one in found.issues)


def test_every_header_length_of_honest_safetensors_stays_safe() -> None:
    """Lengths that begin like a pickle by chance (640 is 80 02) are no pickle."""
    seen = set()
    for size in range(1, 1500, 8):
        content = save({"layer.0.weight": torch.zeros(2)}, {"note": "n" * size})
        seen.add(int.from_bytes(content[:8], "little"))
        assert scan_bytes(content).issues == [], size
    assert 640 in seen and 1152 in seen


@pytest.mark.parametrize("ending", ["safetensors", "npy", "npz", "onnx", "skops"])
def test_a_name_that_promises_another_format_is_not_believed(ending: str, tmp_path: object) -> None:
    found = scan_bytes(BENIGN, name=f"model.{ending}")
    assert found.level is Level.UNVERIFIABLE and f".{ending}" in found.issues[0].what
    assert scan_bytes(BENIGN, name="model.pkl").level is Level.SAFE
    place = tmp_path / f"model.{ending}"  # type: ignore[operator]
    place.write_bytes(BENIGN)
    assert scan_file(place).level is Level.UNVERIFIABLE


# Members that nobody looked at

PROGRAM = ("m/models/model.json", b'{"graph_module": {}}')


def config(**pickled: bool) -> bytes:
    return json.dumps({"config": {key: {"path_name": "weight_0", "use_pickle": one} for key, one in pickled.items()}}).encode()


MEMBERS = {
    "folder with content": [("x.npy", plain_array()), ("evil/", object_array(EVIL))],
    "array as raw data": [("a/data.pkl", BENIGN), ("a/data/evil", object_array(EVIL))],
    "pickle as raw data": [("a/data.pkl", BENIGN), ("a/data/0", EVIL)],
    "old pickle as raw data": [("a/data.pkl", BENIGN), ("a/data/0", b"cos\nsystem\n(S'true'\ntR.")],
    "archive as raw data": [("a/data.pkl", BENIGN), ("a/data/0", zipped([("a/data.pkl", EVIL)]))],
    "pickle as text": [("a.txt", b"cos\nsystem\n(S'true'\ntR.")],
    "pickle behind much text": [("a.txt", b"I1\n0" * 40 + b"cos\nsystem\n(S'true'\ntR.")],
    "bytes behind text": [("a.txt", b"x" * 64 + b"\x80\x04")],
    "second configuration": [
        PROGRAM, ("m/data/weights/a_config.json", config(w=True)), ("m/data/weights/zz_config.json", config(w=False)),
        ("m/data/weights/weight_0", EVIL),
    ],
    "one path, two ways": [PROGRAM, ("m/data/weights/a_config.json", config(w=True, v=False)), ("m/data/weights/weight_0", EVIL)],
    "one key twice": [PROGRAM, ("m/data/weights/a_config.json", b'{"config": {}, "config": {}}')],
    "guard": [("m/models/model.json", b'{"guards_code": ["__import__(\'os\').system(\'true\')"]}')],
    "name": [("m/models/model.json", b'{"graph": {"inputs": [{"name": "x): import os #"}]}}')],
    "key": [("m/models/model.json", b'{"tensor_values": {"a = 1; import os": {}}}')],
    "structure": [("m/models/model.json", b'{"in_spec": "[1, {\\"__enum__\\": \\"os\\"}]"}')],
}


@pytest.mark.parametrize("members", MEMBERS.values(), ids=MEMBERS)
def test_members_that_hide_something_are_never_safe(members: list[tuple[str, bytes]]) -> None:
    assert scan_bytes(zipped(members)).level >= Level.UNVERIFIABLE


def test_honest_members_stay_safe() -> None:
    plain = [PROGRAM, ("m/data/weights/a_config.json", config(w=False, v=False)), ("m/data/weights/weight_0", b"\x01\x02")]
    texts = [
        ("a.txt", b"configuration\nof something\nRest of it.\n"), ("README.md", b"Net.\n"), ("folder/", b""),
    ]
    assert scan_bytes(zipped(plain)).issues == [] and scan_bytes(zipped([*texts, ("x.npy", plain_array())])).issues == []
    # Raw numbers that begin like a pickle without importing anything.
    bytes_of = torch.tensor([0x80, 4, *b"N.xyz"], dtype=torch.uint8)
    buffer = io.BytesIO()
    torch.save({"w": bytes_of}, buffer)
    assert scan_bytes(buffer.getvalue()).issues == []


# States that lie


def small(number: int) -> bytes:
    return b"K" + bytes([number])


def dtype(kind: str, state: bytes) -> bytes:
    return name("numpy", "dtype") + text(kind) + b"\x89\x88\x87R(" + state + b"tb"


NONE = b"J\xff\xff\xff\xff"
OBJECT = dtype("O8", small(3) + text("|") + b"NNN" + NONE + NONE + small(63))
BARE_OBJECT = dtype("O8", small(3) + text("|") + b"NNN" + NONE + NONE + small(0))
DOUBLE = dtype("f8", small(3) + text("<") + b"NNN" + NONE + NONE + small(0))
FIELDS = dtype("V8", small(3) + text("|") + b"N" + text("a") + b"\x85}" + text("a") + OBJECT + small(0) + b"\x86s" + small(8)
               + small(1) + small(63))


def array(kind: bytes, data: bytes, shape: bytes = b"K\x01\x85", start: bytes = b"K\x00\x85", letter: bytes = b"C\x01b") -> bytes:
    made = name("numpy._core.multiarray", "_reconstruct") + name("numpy", "ndarray") + start + letter + b"\x87R"
    return four(made + b"(" + small(1) + shape + kind + b"\x89" + data + b"tb")


def joblib_array(kind: bytes, raw: bytes, extra: bytes = b"") -> bytes:
    state = b"}(" + text("subclass") + name("numpy", "ndarray") + text("shape") + small(len(raw) // 8) + b"\x85"
    state += text("order") + text("C") + text("dtype") + kind + text("allow_mmap") + b"\x88" + extra + b"u"
    return b"\x80\x04" + name("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81" + state + b"b" + raw + b"."


EIGHT = b"C\x08AAAAAAAA"
STATES = {
    "addresses as objects": array(OBJECT, EIGHT), "objects without their flags": array(BARE_OBJECT, EIGHT),
    "objects in a field": array(FIELDS, EIGHT), "too few bytes": array(DOUBLE, EIGHT, b"K\x09\x85"),
    "too few objects": array(OBJECT, b"]", b"K\x09\x85"),
    "scalar of objects": four(name("numpy._core.multiarray", "scalar") + OBJECT + EIGHT + b"\x86R"),
    "builtin dtype changed": four(name("numpy", "dtype") + text("f8") + b"\x89\x89\x87R(" + small(3) + text("<") + b"NNN" + NONE
                                  + NONE + small(0) + b"tb"),
    "joblib objects by fields": joblib_array(FIELDS, EVIL.ljust(64, b"\0")),
    "joblib dtype under a hidden name": joblib_array(
        DOUBLE, bytes(8), name("builtins", "str") + text("dtype") + b"\x85R" + OBJECT),
    "joblib described twice": joblib_array(DOUBLE, bytes(8))[:-1] + b"}b.",
}


@pytest.mark.parametrize("content", STATES.values(), ids=STATES)
def test_states_that_numpy_does_not_write_cannot_be_verified(content: bytes) -> None:
    assert scan_bytes(content).level >= Level.UNVERIFIABLE


def test_the_same_states_as_numpy_writes_them_are_safe() -> None:
    assert scan_bytes(array(DOUBLE, EIGHT)).issues == [] and scan_bytes(array(OBJECT, b"](" + b"Ne")).issues == []
    assert scan_bytes(joblib_array(DOUBLE, bytes(8))).issues == []
    kinds = ["<f8", ">i4", "b1", "U5", "S3", "V8", "M8[D]", "m8[25s]", "c16", "O", [("a", "f4"), ("b", "i8", (2,))]]
    for kind in [*kinds, np.dtype([("a", "u1"), ("b", "i8")], align=True)]:
        for protocol in (0, 2, 4, 5):
            values = [np.zeros((2, 3), kind), np.ma.zeros(3, kind) if kind != "V8" else 0, np.dtype(kind)]
            assert scan_bytes(pickle.dumps(values, protocol)).issues == [], (kind, protocol)


# Loads that would never end


def long(number: int) -> bytes:
    return b"\x8a" + bytes([9]) + number.to_bytes(9, "little")


RANGE = name("builtins", "range") + long(2**36) + b"\x85R"
ENDLESS = {
    "counter": four(name("collections", "Counter") + RANGE + b"\x85R"),
    "deque": four(name("collections", "deque") + RANGE + b"\x85R"),
    "ordered": four(name("collections", "OrderedDict") + RANGE + b"\x85R"),
    "fraction": four(name("fractions", "Fraction") + text("1e999999999") + b"\x85R"),
    "bytes of a number": four(name("builtins", "bytes") + name("builtins", "int") + text("9" * 12) + b"\x85R\x85R"),
    "bytes through a base": four(
        name("copyreg", "_reconstructor") + name("builtins", "bytes") + name("builtins", "bytes") + long(2**40) + b"\x87R"),
    "list through a base": four(
        name("copyreg", "_reconstructor") + name("builtins", "list") + name("builtins", "list") + RANGE + b"\x87R"),
    "large array": array(DOUBLE, EIGHT, start=long(2**40) + b"\x85"),
    "items of no size": array(dtype("S0", small(3) + text("|") + b"NNN" + small(0) + small(1) + small(0)), b"C\0",
                              long(2**39) + b"\x85"),
    "doubling key": four(b"}K\x00\x85" + b"2\x86" * 60 + b"Ns"),
    "long name": four(text("a." * 600) + text("b") + b"\x93"),
}


@pytest.mark.parametrize("content", ENDLESS.values(), ids=ENDLESS)
def test_loads_that_would_exhaust_the_machine_are_never_safe(content: bytes) -> None:
    assert scan_bytes(content).level >= Level.UNVERIFIABLE


def test_doubling_storage_keys_of_a_legacy_file_are_not_written_out() -> None:
    key = (b"(" + text("storage") + name("torch", "FloatStorage") + b")" + b"2\x86" * 200 + text("cpu") + small(1) + b"tQ")
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}."
    found = scan_bytes(magic + four(key) + b"\x80\x02].")
    assert found.level is Level.UNVERIFIABLE and "key" in found.issues[0].what


def test_what_the_scan_holds_is_bounded() -> None:
    import tracemalloc

    header = b'{"a":[' + b"[]," * 4_000_000 + b"[]]}"
    for content, what in (
        (four(b"}" * 600_000), "on the stack"), (four(b"]" + b"}a" * 20_001), "objects"),
        (four(b"N" + b"\x94" * 20_001), "objects"), (struct.pack("<Q", len(header)) + header, "tables and lists"),
        (struct.pack("<Q", 17_000_000) + b"{}".ljust(17_000_000), "a header of 17000000 bytes"),
    ):
        found = scan_bytes(content, limits=Limits(objects=20_000) if what == "objects" else None)
        assert found.level is Level.UNVERIFIABLE and what in found.issues[0].what
    assert Limits().objects <= 1_000_000 and Limits().stack <= 500_000
    tracemalloc.start()
    scan_bytes(four(b"}" * 600_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 2**20
