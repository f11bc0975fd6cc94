"""Data in files: archives, IDX, CIFAR batches and folders of pictures, whole and broken."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from hauberk import load_data
from hauberk.core.errors import DataError, UnsafeFile

RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (12, 5, 4), np.uint8)
LABELS = np.arange(12) % 3


def read(split):
    x, y = split.tensors()
    return x.numpy(), y.numpy()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_both_roles_fills_both(tmp_path, save):
    save(tmp_path / "d.npz", x_train=BYTES, y_train=LABELS, x_test=BYTES[:7], y_test=LABELS[:7].astype(np.uint8))
    data = load_data(tmp_path / "d.npz")
    x, y = read(data.train)
    assert x.shape == (12, 1, 5, 4) and x.dtype == np.float32
    assert np.allclose(x[:, 0], BYTES / 255, atol=1e-7) and y.tolist() == LABELS.tolist()
    assert len(data.test) == 7 and (data.classes, data.modality, data.name, data.bounds) == (3, "image", "d", (0.0, 1.0))
    assert data.train.x.values.dtype == torch.uint8


@pytest.mark.parametrize("names", [("x", "y"), ("images", "labels"), ("X", "Y")])
def test_npz_of_one_role_takes_the_role_it_is_given(tmp_path, names):
    floats = RNG.normal(size=(6, 3))
    np.savez(tmp_path / "a.npz", **{names[0]: floats, names[1]: LABELS[:6, None], "sex": np.array(list("mfmfmf"))})
    data = load_data(tmp_path / "a.npz", trusted=tmp_path / "a.npz", bounds=(-9, 9), groups=["sex"], name="mine")
    assert np.array_equal(read(data.trusted)[0], floats.astype(np.float32)) and data.train is None
    assert (data.bounds, data.name, data.modality) == ((-9, 9), "mine", "tabular")
    assert data.test.groups["sex"].tolist() == [1, 0, 1, 0, 1, 0] and data.group_names == {"sex": ["f", "m"]}


def test_bytes_mean_255ths_in_images_and_numbers_in_tables():
    table = load_data((np.array([[0, 1], [1, 0]], np.uint8), [0, 1]))
    assert read(table.test)[0].tolist() == [[0, 1], [1, 0]] and table.modality == "tabular"
    colour = RNG.integers(0, 256, (3, 6, 7, 3), np.uint8)
    x, _ = read(load_data((colour, [0, 1, 2])).test)
    assert x.shape == (3, 3, 6, 7) and np.allclose(x, colour.transpose(0, 3, 1, 2) / 255, atol=1e-7)
    first = RNG.integers(0, 256, (3, 3, 6, 7), np.uint8)
    assert np.allclose(read(load_data((first, [0, 1, 2])).test)[0], first / 255, atol=1e-7)
    as_is = load_data((colour, [0, 1, 2]), modality="other", bounds=(0, 255))
    assert np.array_equal(read(as_is.test)[0], colour) and as_is.modality == "other"
    series = RNG.normal(size=(3, 8, 2))
    assert load_data((series, [0, 1, 1])).test.shape == (8, 2)
    assert load_data((series, [0, 1, 1]), modality="image").test.shape == (1, 8, 2)
    assert read(load_data((np.array([[True], [False]]), [0, 1])).test)[0].tolist() == [[1], [0]]


@pytest.mark.parametrize("kind", [">u2", "<u4", ">f8", "f2", "i1", "F", "reversed", "frozen"])
def test_any_numeric_array_keeps_its_numbers(kind):
    numbers = np.arange(12).reshape(6, 2)
    made = {"F": np.asfortranarray, "reversed": lambda a: a[::-1].copy()[::-1], "frozen": np.array}
    given = made.get(kind, lambda a: a.astype(kind))(numbers)
    given.flags.writeable = kind != "frozen"
    assert read(load_data((given, LABELS[:6])).test)[0].tolist() == numbers.tolist()


def test_fortran_order_and_big_endian_survive_the_archive(tmp_path):
    values = RNG.normal(size=(6, 4, 3))
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "f.npz", x=np.asfortranarray(values).astype(">f8"), y=LABELS[:6])
        assert np.array_equal(read(load_data(tmp_path / "f.npz").test)[0], values.astype(np.float32))


def test_a_stored_archive_is_mapped_and_not_read(tmp_path):
    # 150 MB of zeros: neither opening it nor reading a few samples may take that much memory.
    np.savez(tmp_path / "big.npz", x=np.zeros((50_000, 3000), np.uint8), y=np.zeros(50_000, np.uint8))
    script = (
        "import resource, sys, hauberk; hauberk.load_data('sklearn:iris')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "data = hauberk.load_data(sys.argv[1]); data.test.sample(64, 0)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    told = subprocess.run([sys.executable, "-c", script, str(tmp_path / "big.npz")], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 60_000  # kilobytes


class Trap:
    """A pickle that would leave a mark."""

    def __reduce__(self):
        return exec, ("open('trap-was-sprung', 'w').close()",)


def rewritten(path, member, change):
    made = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name == member else old.read(name))
    path.write_bytes(made.getvalue())


@pytest.mark.parametrize("at", [0, 10, 100, -200, -30, -1])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_truncated_archive_is_one_clear_error(tmp_path, save, at):
    save(tmp_path / "d.npz", x=BYTES, y=LABELS)
    content = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(content[:at])
    with pytest.raises(DataError, match=r"d\.npz cannot be read.*whole \.npz.*cut short"):
        load_data(tmp_path / "d.npz")


def test_damage_in_the_middle_of_an_archive_is_noticed(tmp_path):
    np.savez_compressed(tmp_path / "d.npz", x=RNG.integers(0, 256, (200, 40), np.uint8), y=np.arange(200) % 2)
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[4000] ^= 0xFF
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_data(tmp_path / "d.npz")


def test_objects_in_an_archive_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trap = np.array([Trap()] * 3)
    for name, x, y in (("x", trap, [0, 1, 0]), ("y", np.zeros((3, 2)), trap)):
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
        with pytest.raises(DataError, match=r"holds object.*could run code"):
            load_data(tmp_path / f"{name}.npz")
    assert not (tmp_path / "trap-was-sprung").exists()


def header(shape, kind="|u1"):
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("content", [
    header((1 << 40, 4)), header((1 << 62, 1 << 62)), header((-1, 4)), header((3, 4)) + b"short", header((2, 2)) + b"toolong",
    b"\x93NUMPY\x09\x00", b"", b"\x93NUMPY\x01\x00\xff\xff{", header("import os"), header((2, 2), "|V9999999999"),
    header((2, 2), [("a", "u1")]),
])
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, content):
    np.savez(tmp_path / "d.npz", x=BYTES, y=LABELS)
    rewritten(tmp_path / "d.npz", "x.npy", lambda _: content)
    with pytest.raises(DataError, match=r"d\.npz"):
        load_data(tmp_path / "d.npz")


def test_a_bomb_in_an_archive_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((3000, 1000), np.uint8), y=np.zeros(3000, int))
    monkeypatch.setattr("hauberk.io.npz.MEMORY_LIMIT", 1 << 20)
    with pytest.raises(DataError, match=r"unpack to 3000000.*uncompressed"):
        load_data(tmp_path / "d.npz")


def test_arrays_with_other_names_and_lengths_are_told(tmp_path):
    np.savez(tmp_path / "d.npz", foo=BYTES, bar=LABELS)
    with pytest.raises(DataError, match=r"arrays bar, foo.*x and y"):
        load_data(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x=BYTES, y=LABELS[:5])
    with pytest.raises(DataError, match=r"d\.npz has 12 samples and 5 labels"):
        load_data(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x_train=BYTES, y_train=LABELS)
    with pytest.raises(DataError, match=r"holds train, not test"):
        load_data(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x=BYTES, y=LABELS)
    with pytest.raises(DataError, match=r"no array 'sex'"):
        load_data(tmp_path / "d.npz", groups=["sex"])


def idx(values, kind=8):
    return b"\0\0" + bytes([kind, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


@pytest.fixture
def mnist_folder(tmp_path):
    for role, n in (("train", 12), ("t10k", 7)):
        (tmp_path / f"{role}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(BYTES[:n])))
        (tmp_path / f"{role}-labels-idx1-ubyte").write_bytes(idx(LABELS[:n].astype(np.uint8)))
    return tmp_path


def test_idx_folder_and_files(mnist_folder):
    data = load_data(mnist_folder)
    assert np.allclose(read(data.train)[0][:, 0], BYTES / 255, atol=1e-7) and read(data.test)[1].tolist() == LABELS[:7].tolist()
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"):
        one = load_data(mnist_folder / name)
        assert one.train is None and np.array_equal(read(one.test)[0], read(data.test)[0])
    plain = idx(BYTES)
    (mnist_folder / "train-images.idx3-ubyte").write_bytes(plain)
    (mnist_folder / "train-labels.idx1-ubyte").write_bytes(idx(LABELS.astype(">i4"), 12))
    mapped = load_data(mnist_folder / "train-images.idx3-ubyte")
    assert np.array_equal(read(mapped.test)[0], read(data.train)[0]) and read(mapped.test)[1].tolist() == LABELS.tolist()


@pytest.mark.parametrize(("name", "content", "told"), [
    ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(BYTES[:7]))[:-20], "cannot be read"),
    ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(BYTES[:7])[:-3]), "longer or shorter"),
    ("t10k-images-idx3-ubyte.gz", gzip.compress(idx(BYTES[:7]) + b"x"), "longer or shorter"),
    ("t10k-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12, mtime=0), "unpacks to"),
    ("t10k-labels-idx1-ubyte", b"\0\0\x08\x01" + b"\xff\xff\xff\xff", "longer or shorter"),
    ("t10k-labels-idx1-ubyte", b"PK\x03\x04", "50 4b 03 04.*IDX header"),
    ("t10k-labels-idx1-ubyte", b"", "IDX header"),
    ("t10k-labels-idx1-ubyte", idx(LABELS[:5].astype(np.uint8)), "7 samples and 5 labels"),
])
def test_broken_idx_is_told(mnist_folder, name, content, told):
    (mnist_folder / name).write_bytes(content)
    with pytest.raises(DataError, match=told):
        load_data(mnist_folder)


def test_idx_without_its_partner_is_told(mnist_folder):
    (mnist_folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"no labels file beside it.*t10k-labels-idx1-ubyte"):
        load_data(mnist_folder)


def batch(n, key=b"labels", protocol=2):
    images = np.random.default_rng(n).integers(0, 256, (n, 3072), np.uint8)
    return images, pickle.dumps({b"data": images, key: [at % 10 for at in range(n)], b"filenames": [b"a.png"] * n}, protocol)


def test_cifar_batches_are_read_and_joined(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    made = [batch(n)[0] for n in (4, 3)]
    for name, n in (("data_batch_1", 4), ("data_batch_2", 3), ("test_batch", 5)):
        (folder / name).write_bytes(batch(n)[1])
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [f"class {at}".encode() for at in range(10)]}, 2))
    data = load_data(folder)
    expected = np.concatenate(made).reshape(-1, 3, 32, 32) / 255
    assert np.allclose(read(data.train)[0], expected, atol=1e-7) and read(data.train)[1].tolist() == [0, 1, 2, 3, 0, 1, 2]
    shuffled = torch.tensor([6, 0, 5, 3, 3])
    assert np.allclose(data.train.x.take(shuffled), expected[shuffled], atol=1e-7)
    assert (data.name, data.classes, data.class_names[9], len(data.test)) == ("cifar-10-batches-py", 10, "class 9", 5)
    assert len(load_data(folder / "test_batch").test) == 5


def test_cifar_100_gives_fine_labels(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(batch(4, b"fine_labels", 4)[1])
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple", b"bee"] + [b"z"] * 98}))
    data = load_data(tmp_path)
    assert (data.classes, data.class_names[:2], len(data.train)) == (100, ["apple", "bee"], 4)


@pytest.mark.parametrize("content", [
    pickle.dumps({b"data": Trap(), b"labels": []}), pickle.dumps(Trap()), b"cos\nsystem\n(S'true'\ntR.",
    b"\x80\x02cnumpy\nload\n.",
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}X\x01\x00\x00\x00aK\x01sb.",
])
def test_a_batch_that_would_run_code_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(UnsafeFile, match="CIFAR batch"):
        load_data(tmp_path / "test_batch")
    assert not (tmp_path / "trap-was-sprung").exists()


@pytest.mark.parametrize("content", [
    b"", b"\x80\x02}", batch(3)[1][:-900], pickle.dumps([1]), pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0, 1]}, 2),
    pickle.dumps({b"data": np.zeros((2, 10), np.uint8), b"labels": [0, 1]}, 2), pickle.dumps({b"labels": [0]}),
    pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["a"]}), b"\x80\x02r\xff\xff\xff\xff.",
    pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, 2),
])
def test_a_broken_batch_is_told(tmp_path, content):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError):
        load_data(tmp_path / "test_batch")


def picture(path, value, mode="RGB", size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def pictures(tmp_path):
    for role in ("train", "val"):
        picture(tmp_path / role / "cat" / "1.png", (255, 0, 51))
        picture(tmp_path / role / "dog" / "b" / "2.png", (0, 102, 0))
        picture(tmp_path / role / "dog" / "1.PNG", 204, "L")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_of_pictures(pictures):
    data = load_data(pictures)
    x, y = read(data.train)
    assert x.shape == (3, 3, 5, 6) and y.tolist() == [0, 1, 1] and data.class_names == ["cat", "dog"]
    assert np.allclose(x[:, :, 0, 0], [[1, 0, 0.2], [0.8, 0.8, 0.8], [0, 0.4, 0]], atol=1e-7)
    assert np.allclose(data.test.x.take(torch.tensor([2, 0]))[:, :, 4, 5], [[0, 0.4, 0], [1, 0, 0.2]], atol=1e-7)
    one = load_data(pictures / "val", train=pictures / "train")
    assert np.array_equal(read(one.test)[0], read(data.test)[0]) and one.modality == "image"


def test_gray_pictures_have_one_channel_and_mixed_ones_three(tmp_path, monkeypatch):
    picture(tmp_path / "a" / "1.png", 51, "L")
    picture(tmp_path / "b" / "1.png", 1, "1")
    x, _ = read(load_data(tmp_path).test)
    assert x.shape == (2, 1, 5, 6) and np.allclose(x[:, 0, 0, 0], [0.2, 1.0])
    picture(tmp_path / "b" / "2.png", (51, 102, 255))
    mixed, _ = read(load_data(tmp_path).test)
    assert np.allclose(mixed[:, :, 0, 0], [[0.2] * 3, [1.0] * 3, [0.2, 0.4, 1.0]])
    monkeypatch.setattr("hauberk.io.images.PROBES", 1)  # the one that is looked at is gray
    with pytest.raises(DataError, match=r"2\.png has colours"):
        read(load_data(tmp_path).test)


def test_codes_of_classes_come_from_the_training_folder(pictures):
    (pictures / "val" / "cat" / "1.png").unlink()
    (pictures / "val" / "cat").rmdir()
    assert read(load_data(pictures).test)[1].tolist() == [1, 1]
    picture(pictures / "val" / "emu" / "1.png", (1, 1, 1))
    with pytest.raises(DataError, match=r"label 'emu'.*cat, dog"):
        load_data(pictures)


def test_broken_and_huge_pictures_are_told(pictures, monkeypatch):
    place = pictures / "val" / "cat" / "1.png"
    whole = place.read_bytes()

    def told(content, message):
        place.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read(load_data(pictures).test)

    told(whole[:-25], r"1\.png cannot be decoded")
    told(b"not a picture", r"1\.png is not a picture")
    told(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n", "is not a picture")
    picture(place, 7, "I;16")
    told(place.read_bytes(), "8 bits per channel")
    bomb = whole.replace(struct.pack(">2I", 6, 5), struct.pack(">2I", 60_000, 60_000))
    bomb = bomb[:29] + struct.pack(">I", __import__("zlib").crc32(bomb[12:29])) + bomb[33:]
    told(bomb, r"1\.png (cannot be decoded \(Decompression|has 60000 x 60000)")
    place.write_bytes(whole)
    picture(pictures / "val" / "dog" / "1.PNG", (0, 0, 0), size=(7, 5))
    with pytest.raises(DataError, match=r"7 x 5 pixels.*6 x 5.*Resize"):
        read(load_data(pictures).test)
    monkeypatch.setattr("hauberk.io.images.PIXEL_LIMIT", 29)
    with pytest.raises(DataError, match="at most 29 pixels"):
        load_data(pictures)


def test_folders_that_hold_nothing_are_told(tmp_path):
    with pytest.raises(DataError, match="not a folder of data"):
        load_data(tmp_path)
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"cat holds no pictures"):
        load_data(tmp_path)
