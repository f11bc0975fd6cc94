"""HDF5, Keras, GGUF, templates, tar, manifests and folders: what is told of each, and where."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from corpus.archives import npy
from corpus.asm import EVIL, gguf, hdf5, hdf5_old, zipped
from corpus.benign import CHAT
from corpus.containers import LAYERS, TEMPLATES, keras, onnx
from corpus.streams import tarred

from hauberk.assets.scan import Level, Limits, scan_bytes, scan_file, scan_paths
from hauberk.core.errors import UsageError

PLAIN = json.dumps(keras({"module": "keras.layers", "class_name": "Dense", "config": {"units": 1}}))
EMPTY = struct.pack("<HHB3x", 0x11, 16, 0) + bytes(16)


@pytest.mark.parametrize("write", [hdf5, lambda attributes: hdf5_old(attributes, struct.pack("<HHB3x", 1, 8, 0) + bytes(8))])
def test_hdf5_attributes_are_read_in_both_versions(write: object) -> None:
    def level(**attributes: str) -> Level:
        return scan_bytes(write({"backend": "jax", **attributes})).level  # type: ignore[operator]

    assert level() is Level.SAFE and level(model_config=PLAIN) is Level.FRAMEWORK
    assert level(model_config=json.dumps(keras(LAYERS["lambda"]))) is Level.DANGEROUS
    assert level(note="cos\nsystem\n(S'true'\ntR.") is Level.UNVERIFIABLE


def test_objects_below_the_root_are_walked() -> None:
    def child(kind: int, body: bytes) -> Level:
        return scan_bytes(hdf5_old({"a": "b"}, struct.pack("<HHB3x", kind, len(body), 0) + body)).level

    assert child(1, bytes(8)) is Level.SAFE and child(7, bytes(8)) is Level.DANGEROUS
    assert child(8, b"\x04\x03" + bytes(6)) is Level.DANGEROUS and child(8, b"\x04\x01" + bytes(6)) is Level.SAFE
    assert child(0x11, bytes(16)) is Level.UNVERIFIABLE  # a group whose tree is not one
    cut = hdf5_old({"a": "b"}, struct.pack("<HHB3x", 1, 8, 0) + bytes(8))
    for length in range(90, len(cut) - 4000, 37):
        assert scan_bytes(cut[:length]).level is Level.UNVERIFIABLE, length


def test_keras_archives_name_the_layer() -> None:
    def scanned(layer: dict[str, object]) -> object:
        return scan_bytes(zipped({"metadata.json": b"{}", "config.json": json.dumps(keras(layer)).encode(),
                                  "model.weights.h5": hdf5({})}), name="m.keras")

    found = scanned(LAYERS["lambda"])
    assert found.issues[0].where == "config.json" and "Lambda" in found.issues[0].what  # type: ignore[attr-defined]
    fine = {"module": "keras.layers", "class_name": "Dense", "config": {"activation": {
        "module": "keras.activations", "class_name": "function", "config": "relu", "registered_name": "relu"}}}
    assert scanned(fine).level is Level.FRAMEWORK  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_leave_the_template_are_told(name: str) -> None:
    found = scan_bytes(gguf({"tokenizer.chat_template": TEMPLATES[name]}))
    assert not found.safe and found.issues[0].where == "tokenizer.chat_template"


def test_a_plain_template_is_no_more_than_an_object_of_a_framework() -> None:
    found = scan_bytes(gguf({"tokenizer.chat_template": CHAT, "general.name": "net"}))
    assert found.issues == [] and found.level is Level.FRAMEWORK and found.objects == ["chat template"]
    assert scan_bytes(gguf({"general.name": "net"})).level is Level.SAFE


def test_a_template_of_openers_alone_takes_no_time() -> None:
    assert scan_bytes(gguf({"chat_template": "{{" * 400_000})).level is Level.UNVERIFIABLE
    assert scan_bytes(gguf({"chat_template": "{# {{ x.__class__ }} #}" + "{{ x }}" * 1000})).level is Level.FRAMEWORK


def test_what_lies_beside_a_model_is_known_by_its_name(tmp_path: Path) -> None:
    for name, content, safe in (
        ("README.md", "[![badge](x)](y)\n", True), ("vocab.txt", "[PAD]\n[UNK]\n", True), (".gitattributes", "*.bin lfs\n", True),
        ("LICENSE", "Copyright\n", True), ("merges.txt", "#version: 0.2\nĠ t\n", True), ("a.json", "[1, 2]", True),
        ("model.py", "x = 1\n", False),
        ("chat.jinja", CHAT, True), ("evil.jinja", TEMPLATES["mro"], False),
        ("notes", "hello\n", False),
        ("a.md", "cos\nsystem\n(S'true'\ntR.", False),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert scan_file(tmp_path / name).safe is safe, name


def test_a_gguf_header_that_lies_is_not_believed() -> None:
    good = gguf({"a": "b"})
    assert scan_bytes(good[:-16]).level is Level.UNVERIFIABLE
    place = good.index(b"w\x01\x00\x00\x00") + 1
    for at, value in ((place, 9), (place + 4, 2**61), (place + 12, 77), (place + 16, 1 << 40)):
        form = "<I" if at in (place, place + 12) else "<Q"
        changed = bytearray(good)
        struct.pack_into(form, changed, at, value)
        assert scan_bytes(bytes(changed)).level is Level.UNVERIFIABLE, at


def test_tar_members_are_scanned_under_their_names() -> None:
    found = scan_bytes(tarred({"a.npy": npy(bytes(8)), "b/model.pkl": EVIL}))
    assert found.issues[0].where.startswith("b/model.pkl@") and found.parts == 3
    assert scan_bytes(tarred({f"{index}.npy": npy(bytes(8)) for index in range(9)}), limits=Limits(members=5)).issues[0].what == (
        "more than 5 members")


def test_external_data_beside_a_graph(tmp_path: Path) -> None:
    graph = tmp_path / "models" / "a.onnx"
    graph.parent.mkdir()
    graph.write_bytes(onnx("weights.bin"))
    assert scan_file(graph).safe
    (tmp_path / "secret").write_bytes(b"x")
    os.symlink(tmp_path / "secret", graph.with_name("weights.bin"))
    found = scan_file(graph)
    assert found.level is Level.DANGEROUS and "link that leads outside" in found.issues[0].what
    graph.with_name("weights.bin").unlink()
    graph.with_name("weights.bin").mkdir()
    assert scan_file(graph).level is Level.UNVERIFIABLE


def test_a_folder_is_walked_and_no_link_leads_out_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    (folder / "sub").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / ".git" / "x.pkl").write_bytes(EVIL)
    np.save(folder / "a.npy", np.zeros(2))
    (folder / "sub" / "b.pkl").write_bytes(EVIL)
    (tmp_path / "out.pkl").write_bytes(EVIL)
    os.symlink(tmp_path / "out.pkl", folder / "file.pkl")
    os.symlink(tmp_path, folder / "up")
    os.symlink(folder / "a.npy", folder / "same.npy")
    os.symlink(folder / "nowhere", folder / "broken")
    found = {Path(one.path).name: one for one in scan_paths([folder])}
    assert set(found) == {"a.npy", "b.pkl", "file.pkl", "up", "broken"}
    assert found["a.npy"].level is Level.SAFE and found["b.pkl"].level is Level.DANGEROUS
    assert all(found[name].level is Level.UNVERIFIABLE for name in ("file.pkl", "up", "broken"))
    assert "out of the folder" in found["up"].issues[0].what
    # A link that is named itself is what its owner meant.
    assert [one.level for one in scan_paths([folder / "file.pkl"])] == [Level.DANGEROUS]
    (tmp_path / "empty").mkdir()
    assert [one.level for one in scan_paths([tmp_path / "empty"])] == [Level.UNVERIFIABLE]
    assert [one.level for one in scan_paths([folder], limits=Limits(members=1))][-1] is Level.UNVERIFIABLE
    with pytest.raises(UsageError):
        list(scan_paths([tmp_path / "missing"]))


def test_arrow_texts_may_not_lie_beyond_their_bytes() -> None:
    from corpus.asm import Call, Ref, encode

    def level(places: tuple[int, ...], content: bytes, length: int) -> Level:
        kind = Call(Ref("pyarrow.lib", "type_for_alias"), ("large_string",))
        buffers = [None, *(Call(Ref("pyarrow.lib", "py_buffer"), (raw,)) for raw in (struct.pack(f"<{len(places)}q", *places),
            content))]
        body = encode(Call(Ref("pyarrow.lib", "_restore_array"), ((kind, length, 0, 0, buffers, [], None),)))
        return scan_bytes(b"\x80\x04" + body + b".").level

    assert level((0, 1, 3), b"abc", 2).name in ("SAFE", "FRAMEWORK")
    for case in (((0, 1, 3), b"ab", 2), ((0, 1), b"abc", 2), ((0, 3, 1), b"abc", 2), ((-8, 1, 3), b"abc", 2)):
        assert level(*case) is Level.DANGEROUS, case


def test_nothing_is_read_beyond_the_limits() -> None:
    content = npy(bytes(2**20), shape=(2**17,))
    import gzip

    packed = gzip.compress(content, mtime=0)
    assert not scan_bytes(packed, limits=Limits(read=2**16)).safe
    assert scan_bytes(b"\xfd7zXZ\x00\x00\x04" + bytes(40)).level is Level.UNVERIFIABLE
    deep = io.BytesIO(content).getvalue()
    for _ in range(6):
        deep = zipped({"a.zip": deep})
    assert "nested deeper" in scan_bytes(deep).issues[0].what
