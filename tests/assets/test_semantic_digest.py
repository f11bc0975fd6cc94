"""The semantic digest: equal over formats, changed by any value, name, shape or type; and the readers behind it."""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hauberk.assets.signing.semantic import digest_tensors, semantic_digest
from hauberk.assets.tensors import TensorSpec, tensors_in
from hauberk.core.errors import HauberkError, ModelError, UnsafeFile


def tensors() -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(0)
    return {
        "b.weight": torch.randn(3, 4, 2, generator=made), "a": torch.arange(5), "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 3), "flags": torch.tensor([True, False, True]),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16), "complex": torch.tensor([1 + 2j]),
        "ünïcode": torch.tensor([-1], dtype=torch.int16),
        "odd": torch.tensor([0.0, -0.0, float("nan"), float("inf")]),
    }


def by_hand(held: dict[str, Tensor]) -> str:
    """The definition, written out once more."""
    names = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8",
             torch.float16: "F16", torch.complex64: "C64", torch.int16: "I16"}
    whole = hashlib.sha256(b"hauberk-tensors/1\n" + struct.pack("<Q", len(held)))
    for name in sorted(held, key=str.encode):
        array, raw, kind = held[name].numpy(), name.encode(), names[held[name].dtype].encode()
        whole.update(struct.pack("<I", len(raw)) [:4] + bytes([len(kind)]) + raw + kind + struct.pack("<I", array.ndim))
        whole.update(b"".join(struct.pack("<Q", length) for length in array.shape))
        whole.update(hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).digest())
    return whole.hexdigest()


def test_every_format_has_the_digest_of_the_definition(tmp_path: Path) -> None:
    held = tensors()
    torch.save(held, tmp_path / "a.pt")
    turned = {name: nn.Parameter(one) if one.is_floating_point() else one for name, one in reversed(held.items())}
    torch.save(turned, tmp_path / "b.pt")
    save_file(held, tmp_path / "a.safetensors", metadata={"x": "y"})
    arrays: dict[str, Any] = {name: one.numpy() for name, one in held.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    swapped = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in arrays.items()}
    np.savez_compressed(tmp_path / "big.npz", **swapped)
    fortran = {name: np.asarray(array, order="F") for name, array in swapped.items()}
    np.savez(tmp_path / "fortran.npz", **fortran)
    wanted = by_hand(held)
    for file in sorted(tmp_path.iterdir()):
        found = semantic_digest(file)
        assert (found.digest, found.count) == (wanted, len(held)), file.name


def test_bfloat16_and_float8_survive_between_torch_and_safetensors(tmp_path: Path) -> None:
    held = {"a": torch.randn(7).bfloat16(), "b": torch.randn(6).to(torch.float8_e4m3fn), "c": torch.arange(3).to(torch.uint16)}
    torch.save(held, tmp_path / "a.pt")
    save_file(held, tmp_path / "a.safetensors")
    assert semantic_digest(tmp_path / "a.pt") == semantic_digest(tmp_path / "a.safetensors")
    assert [(one.name, one.dtype) for one in tensors_in(tmp_path / "a.pt")] == [("a", "BF16"), ("b", "F8_E4M3"), ("c", "U16")]


def test_views_and_shared_storages_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    held = {"t": base.T, "cut": base[1:3, ::2], "row": base[2], "wide": torch.ones(1).expand(5)}
    held["permuted"] = base.reshape(2, 3, 4).permute(2, 0, 1)
    torch.save(held, tmp_path / "a.pt")
    save_file({name: one.contiguous().clone() for name, one in held.items()}, tmp_path / "a.safetensors")
    assert semantic_digest(tmp_path / "a.pt") == semantic_digest(tmp_path / "a.safetensors")
    for one in tensors_in(tmp_path / "a.pt"):
        values = np.frombuffer(b"".join(bytes(part) for part in one.parts()), np.float32).reshape(one.shape)
        assert np.array_equal(values, held[one.name].numpy())


def test_shards_are_one_model(tmp_path: Path) -> None:
    held = tensors()
    save_file(held, tmp_path / "whole.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(held)
    save_file({name: held[name] for name in names[:4]}, shards / "1.safetensors")
    torch.save({name: held[name] for name in names[4:]}, shards / "2.bin")
    (shards / "config.json").write_text("{}")
    assert semantic_digest(shards) == semantic_digest(tmp_path / "whole.safetensors")
    save_file({names[0]: held[names[0]]}, shards / "3.safetensors")
    with pytest.raises(UnsafeFile, match="comes twice"):
        semantic_digest(shards)


def test_a_link_to_more_shards_is_refused(tmp_path: Path) -> None:
    for name in ("model", "other"):
        (tmp_path / name).mkdir()
        save_file({name: torch.ones(2)}, tmp_path / name / "a.safetensors")
    assert semantic_digest(tmp_path / "model").count == 1
    (tmp_path / "model" / "more").symlink_to(tmp_path / "other")
    with pytest.raises(UnsafeFile, match="is a link"):
        semantic_digest(tmp_path / "model")


def test_any_single_change_changes_it(tmp_path: Path) -> None:
    held = tensors()

    def digest(changed: dict[str, Tensor]) -> str:
        save_file(changed, tmp_path / "x.safetensors")
        return semantic_digest(tmp_path / "x.safetensors").digest

    seen = {digest(held)}
    variants: list[dict[str, Tensor]] = []
    for name, one in held.items():
        for at in range(one.numel()):
            bits = bytearray(one.numpy().tobytes())
            bits[at * one.element_size()] ^= 1
            changed = torch.frombuffer(bits, dtype=one.dtype).reshape(one.shape)
            variants.append({**held, name: changed})
        variants.append({key + "'" if key == name else key: value for key, value in held.items()})
        variants.append({key: value for key, value in held.items() if key != name})
        variants.append({**held, name: one[None]})
    variants.append({**held, "a": held["a"].to(torch.int32)})
    variants.append({**held, "a": held["a"].view(torch.uint64)})  # the same bytes under another type
    variants.append({**held, "b.weight": held["b.weight"].reshape(4, 3, 2)})
    variants.append({**held, "odd": torch.tensor([0.0, 0.0, float("nan"), float("inf")])})  # -0.0 is not 0.0
    payload = torch.tensor([0.0, -0.0, float("nan"), float("inf")])
    payload.view(torch.int32)[2] += 2  # another NaN
    variants.append({**held, "odd": payload})
    variants.append({**held, "a": held["bytes"], "bytes": held["a"]})
    for variant in variants:
        seen.add(digest(variant))
    assert len(seen) == len(variants) + 1


def test_names_cannot_run_into_each_other() -> None:
    def spec(name: str, content: bytes) -> TensorSpec:
        return TensorSpec(name, "U8", (len(content),), lambda: iter([content]))

    one, two = [spec("ab", b"x"), spec("c", b"y")], [spec("a", b"x"), spec("bc", b"y")]
    assert digest_tensors(one).digest != digest_tensors(two).digest
    assert digest_tensors(one).digest == digest_tensors(one[::-1]).digest
    with pytest.raises(ModelError, match="one name"):
        digest_tensors([spec("a", b"x"), spec("a", b"x")])
    with pytest.raises(ModelError, match="not Unicode"):
        digest_tensors([spec("\ud800", b"x")])
    with pytest.raises(ModelError, match="another byte than 0 and 1"):
        digest_tensors([TensorSpec("a", "BOOL", (1,), lambda: iter([b"\2"]))])
    with pytest.raises(ModelError, match="are wanted"):
        digest_tensors([TensorSpec("a", "U8", (3,), lambda: iter([b"\2"]))])


class Evil:
    def __reduce__(self) -> Any:
        return (eval, ("open('ran', 'w')",))


def rewritten(source: Path, target: Path, pickled: bytes) -> Path:
    """Copy a torch archive with another pickle."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for one in old.infolist():
            new.writestr(one.filename, pickled if one.filename.endswith("data.pkl") else old.read(one))
    return target


def test_what_is_no_state_dict_is_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where the code in the files would leave its mark
    net = nn.Sequential(nn.Linear(2, 2))
    for name, value in {
        "module": net, "nested": {"model": net.state_dict()}, "mixed": {**net.state_dict(), "epoch": 3}, "list": [torch.ones(2)],
        "numbers": {1: torch.ones(2)}, "conjugate": {"a": torch.tensor([1 + 1j]).conj()}, "evil": {"a": Evil()},
        "sparse": {"a": torch.eye(2).to_sparse()},
    }.items():
        place = tmp_path / f"{name}.pt"
        torch.save(value, place)
        with pytest.raises(HauberkError):
            semantic_digest(place)
    torch.save(net.state_dict(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "text.pt").write_text("hello")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    np.savez(tmp_path / "words.npz", a=np.array(["x"]))
    np.savez(tmp_path / "record.npz", a=np.zeros(2, dtype=[("x", "f4")]))
    for name in ("legacy.pt", "text.pt", "objects.npz", "words.npz", "record.npz"):
        with pytest.raises(HauberkError):
            semantic_digest(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_pickles_that_would_hang_or_burst_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    deep = b"\x80\x02}K\x01\x85" + b"q\x00"
    for number in range(60):
        deep += b"h%c" % number + b"h%c" % number + b"\x86" + b"q%c" % (number + 1)
    deep += b"N" + b"s."
    cases = {
        "tuple key": deep, "huge bytes": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "ext": b"\x80\x02\x82\x01.",
        "cut": b"\x80\x02}", "empty": b"", "persistent": b"Pabc\n.", "marks": b"(" * 1000 + b".",
    }
    for name, pickled in cases.items():
        with pytest.raises(HauberkError):
            semantic_digest(rewritten(tmp_path / "good.pt", tmp_path / f"{name}.pt", pickled))


def test_tensors_beyond_their_storage_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        pickled = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    for old, new in ((b"K\x00K\x04\x85", b"K\x00K\x05\x85"), (b"K\x00K\x04\x85", b"K\x01K\x04\x85")):
        assert old in pickled
        with pytest.raises(ModelError, match="beyond its storage"):
            semantic_digest(rewritten(tmp_path / "good.pt", tmp_path / "bad.pt", pickled.replace(old, new, 1)))


HEAD = b"\x80\x02"
STORED = b"((X\x07\x00\x00\x00storagectorch\n%sStorage\nX\x01\x00\x00\x00%sX\x03\x00\x00\x00cpuK%ctQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n" + STORED + b"K\x00K%c\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"


def tensor(kind: bytes = b"Float", key: bytes = b"0", numel: int = 4, length: int = 4) -> bytes:
    return TENSOR % (kind, key, numel, length)


def stored(kind: bytes, key: bytes) -> bytes:
    return STORED[1:] % (kind, key, 4)


def test_what_torch_would_read_otherwise_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4.0)}, tmp_path / "good.pt")

    def digest(pickled: bytes) -> str:
        place = rewritten(tmp_path / "good.pt", tmp_path / "made.pt", HEAD + pickled + b".")
        return semantic_digest(place).digest

    a, b = b"X\x01\x00\x00\x00a", b"X\x01\x00\x00\x00b"
    assert digest(b"}" + a + tensor() + b"s") == semantic_digest(tmp_path / "good.pt").digest
    place = tmp_path / "made.pt"
    assert torch.equal(torch.load(place, weights_only=True)["a"], torch.arange(4.0))
    ordered = b"ccollections\nOrderedDict\n](](" + b + tensor() + b"ee\x85R"
    key, again_stored = b"X\x03\x00\x00\x00key", stored(b"Float", b"0")[:-1]
    again = b"(" + STORED[1:] % (b"Float", b"0", 4) + b"K\x00K\x02\x85K\x01\x85tb"
    for pickled, said in (
        (b"}" + a + tensor() + again + b"s", "changed after it was made"),
        (ordered + a + tensor() + b"s", "holds collections.OrderedDict"),  # torch sees b as well
        (b"}(" + a + tensor() + b + tensor(b"Int") + b"u", "described in two ways"),  # torch gives both the first type
        (b"}(" + a + tensor() + b + tensor(numel=2, length=2) + b"u", "described in two ways"),
        (stored(b"Int", b"0") + b"0}" + a + tensor() + b"s", "described in two ways"),  # torch keeps it
        (b"}" + a + tensor().replace(b"tQ", b"tQ}" + key + again_stored + b"sb") + b"s", "changed after it was named"),
        (b"ccollections\nOrderedDict\n)R" + a + tensor() + b"s}X\x04\x00\x00\x00keysccollections\nOrderedDict\nsb", "holds c"),
        (b"}" + a + tensor(numel=2) + b"s", "beyond its storage"), (b"}" + a + tensor(key=b"1") + b"s", "cannot be read"),
        (b"cbuiltins\nprint\n)R0}" + a + tensor() + b"s", "names builtins.print"),  # called, and the result dropped
        (b"cos\nsystem\n0}" + a + tensor() + b"s", "names os.system"),
    ):
        with pytest.raises(HauberkError, match=said):
            digest(pickled)
    rewritten(tmp_path / "good.pt", place, HEAD + ordered + a + tensor() + b"s.")
    assert set(torch.load(place, weights_only=True)) == {"a", "b"}
    np.savez(tmp_path / "a.npz", **{"x": np.zeros(2), "x.npy": np.ones(2)})  # type: ignore[arg-type]
    assert np.load(tmp_path / "a.npz")["x.npy"][0] == 0  # numpy itself takes one for the other
    with pytest.raises(ModelError, match="arrays alone"):
        semantic_digest(tmp_path / "a.npz")


def test_broken_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4), "b": torch.zeros(2)}, tmp_path / "good.safetensors")
    whole = (tmp_path / "good.safetensors").read_bytes()
    place = tmp_path / "x.safetensors"
    for changed in (whole[:-1], whole + b"\0", whole[:20], whole.replace(b"[0,16]", b"[0,17]"), whole.replace(b'"b"', b'"a"'),
                    whole.replace(b"[4]", b"[5]"), whole.replace(b"F32", b"F33"), (2**63).to_bytes(8, "little") + whole[8:]):
        assert changed != whole
        place.write_bytes(changed)
        with pytest.raises(HauberkError):
            semantic_digest(place)
    for shape, end in ((f"[{'9223372036854775807,' * 200_000}0]", 0), (f"[{'9' * 4300}]", "9" * 4300)):
        header = f'{{"a":{{"dtype":"U8","shape":{shape},"data_offsets":[0,{end}]}}}}'.encode()  # hours, or no number to print
        place.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ModelError):
            semantic_digest(place)


def test_extension_opcodes_never_reach_the_registry() -> None:
    from hauberk.assets.tensors.inert import follow

    assert follow(pickle.dumps({"a": [1, (2, "x")]}), "x") == {"a": [1, (2, "x")]}
    made = follow(pickle.dumps(Evil()), "x")
    assert made.of == "builtins.eval" and made.args == ("open('ran', 'w')",)
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol=5).dump(bytearray(b"abc"))
    assert follow(buffer.getvalue(), "x") == bytearray(b"abc")
