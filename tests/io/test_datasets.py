"""load_data: arrays, torch datasets, bundled data, real data, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import datasets as bundled
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from hauberk import Split, load_data
from hauberk.core.errors import DataError


@pytest.mark.parametrize(("name", "features", "classes", "n"), [
    ("breast_cancer", 30, 2, 569), ("wine", 13, 3, 178), ("iris", 4, 3, 150),
])
def test_bundled_tables_are_scaled_by_the_training_part(name, features, classes, n):
    data, original = load_data(f"sklearn:{name}"), getattr(bundled, f"load_{name}")()
    x, y = data.train.tensors()
    assert x.shape[1] == features and data.classes == classes and len(data.train) + len(data.test) == n
    assert x.amin(0).tolist() == [0.0] * features and x.amax(0).tolist() == [1.0] * features
    assert float(data.test.tensors()[0].min()) >= 0 and float(data.test.tensors()[0].max()) <= 1
    assert list(data.class_names) == list(original.target_names) and list(data.feature_names) == list(original.feature_names)
    # Each class has its share in both parts, and the parts are the whole.
    both = torch.bincount(y, minlength=classes) + torch.bincount(data.test.y, minlength=classes)
    assert both.tolist() == np.bincount(original.target).tolist()
    assert float((torch.bincount(data.test.y) / len(data.test) - both / n).abs().max()) < 1.5 / len(data.test)
    # A test row is an original row, scaled by the training rows and set to their range.
    known = {tuple(np.round(row, 5)) for row in np.concatenate([x.numpy(), data.test.tensors()[0].numpy()])}
    assert len(known) >= n - 5


def test_digits_are_images_always_in_the_same_order():
    data, original = load_data("sklearn:digits"), bundled.load_digits()
    x, y = data.test.tensors()
    assert x.shape == (540, 1, 8, 8) and x.dtype == torch.float32 and data.modality == "image" and data.name == "digits"
    place = {row.tobytes(): at for at, row in enumerate((original.data / 16).astype(np.float32))}
    found = [place[row.numpy().tobytes()] for row in torch.cat([x, data.train.tensors()[0]]).flatten(1)]
    assert sorted(found) == list(range(1797)) and y.tolist() == original.target[found[:540]].tolist()
    again, _ = load_data("sklearn:digits").test.tensors()
    assert torch.equal(x, again)
    assert len(set(y[:50].tolist())) == 10  # shuffled: the first samples are not all of one class


def test_diabetes_is_a_regression_with_groups():
    data, original = load_data("sklearn:diabetes", groups=["sex"]), bundled.load_diabetes(scaled=False)
    assert data.classes is None and data.test.y.is_floating_point()
    both = torch.cat([data.train.y, data.test.y]).sort().values
    assert both.tolist() == sorted(original.target.tolist())
    sexes = torch.cat([data.train.groups["sex"], data.test.groups["sex"]])
    assert torch.bincount(sexes).tolist() == [int((original.data[:, 1] == one).sum()) for one in (1, 2)]
    assert data.group_names == {"sex": ["1", "2"]}


class Items(Dataset):
    def __init__(self, kind="tensor", **more):
        self.kind, self.asked = kind, []
        self.__dict__.update(more)

    def __len__(self):
        return 6

    def __getitem__(self, at):
        self.asked.append(at)
        value = np.full((6, 5, 3), 40 * at, np.uint8)
        made = {
            "tensor": lambda: torch.full((3, 6, 5), at / 6), "array": lambda: value, "picture": lambda: Image.fromarray(value),
            "ragged": lambda: torch.zeros(at % 2 + 1, 4),
        }[self.kind]()
        return made, at % 3


@pytest.mark.parametrize("kind", ["tensor", "array", "picture"])
def test_a_torch_dataset_is_read_when_asked(kind):
    source = Items(kind, targets=[at % 3 for at in range(6)], classes=["a", "b", "c"])
    data = load_data(source)
    assert set(source.asked) <= {0, 5}  # one for the shape, two to see that the targets are the labels
    x, y = data.test.take(torch.tensor([4, 1]))
    unit = 1 / 6 if kind == "tensor" else 40 / 255
    assert x.shape == (2, 3, 6, 5) and torch.allclose(x[:, 1, 2, 3], torch.tensor([4 * unit, unit])) and y.tolist() == [1, 1]
    assert data.class_names == ["a", "b", "c"] and data.test.y.tolist() == [0, 1, 2, 0, 1, 2]


def test_targets_that_are_not_the_labels_are_not_believed():
    assert load_data(Items(targets=[1] * 6)).test.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert load_data(Items()).test.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert load_data(Subset(Items(targets=[at % 3 for at in range(6)]), [5, 0])).test.y.tolist() == [2, 0]
    pairs = load_data(TensorDataset(torch.rand(4, 2), torch.tensor([0, 1, 1, 0])))
    assert pairs.test.y.tolist() == [0, 1, 1, 0] and pairs.modality == "tabular"


def test_datasets_that_cannot_be_used_are_told():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(2), 0

    with pytest.raises(DataError, match="map-style"):
        load_data(Stream())
    with pytest.raises(DataError, match="resizes"):
        load_data(Items("ragged")).test.tensors()
    with pytest.raises(DataError, match=r"item 0 .* Tensor.*pair"):
        load_data(_Bare())


class _Bare(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, at):
        return torch.zeros(3)


def test_arrays_tensors_and_splits():
    x, y = torch.rand(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    data = load_data((x, y), train=(x.numpy(), y.numpy()), trusted=Split(x, y, {"g": y}))
    assert data.test.tensors()[0].dtype == torch.float64  # a tensor keeps the type its owner chose
    assert data.train.tensors()[0].dtype == torch.float32  # float64 is NumPy's habit
    assert torch.equal(data.test.tensors()[0], x) and data.trusted.groups["g"].tolist() == y.tolist()
    assert data.test.x.values.data_ptr() == x.data_ptr()  # a view, no copy
    assert load_data((x, y), bounds=(torch.zeros(4), np.ones(4))).bounds[1].tolist() == [1, 1, 1, 1]


def test_words_as_labels_get_the_codes_of_the_training_split():
    x = np.zeros((3, 2))
    data = load_data((x, ["dog", "ant", "dog"]), train=(x, np.array(["cat", "dog", "ant"], object)))
    assert data.class_names == ["ant", "cat", "dog"]
    assert data.test.y.tolist() == [2, 0, 2] and data.train.y.tolist() == [1, 2, 0] and data.classes == 3
    with pytest.raises(DataError, match=r"label 'emu', which the training split does not know"):
        load_data((x, ["dog", "emu", "dog"]), train=(x, ["cat", "dog", "ant"]))


@pytest.mark.parametrize(("y", "told"), [
    ([0.0, 1.0, 1.0, 0.0], r"whole numbers written as decimals, such as 0\.0.*astype\('int64'\)"),
    ([0.5, float("nan"), 1, 2], "1 of 4 labels .* not finite"),
    ([0, -1, 1, 1], "lowest label .* is -1.*counted from 0"),
    (np.eye(4), r"shape \(4, 4\).*argmax"),
    ([0, 1, 2], "4 samples and 3 labels"),
    ([None, 1, 2, 3], "type object"),
    ([1j, 1, 2, 3], "type complex"),
])
def test_labels_that_are_no_labels_are_told(y, told):
    with pytest.raises(DataError, match=told):
        load_data((np.zeros((4, 2)), np.asarray(y)))


def test_sources_that_are_not_there_name_the_next_step(tmp_path):
    (tmp_path / "mnist.npz").write_bytes(b"")
    (tmp_path / "model.pt").write_bytes(b"")
    for source, told in {
        "sklearn:digit": r"no data set 'sklearn:digit'.*Did you mean 'digits'", "sklearn:": "no data set",
        "https://example.org/d.npz": r"scheme 'https:'.*fetches nothing",
        str(tmp_path / "mnst.npz"): r"does not exist.*'mnist\.npz'",
        str(tmp_path / "no" / "d.csv"): "folder .* does not exist either", str(tmp_path / "model.pt"): r"no kind.*numpy\.savez",
    }.items():
        with pytest.raises(DataError, match=told):
            load_data(source)
    with pytest.raises(DataError, match="given as dict"):
        load_data({"x": 1})
    with pytest.raises(DataError, match="neither a file nor a folder"):
        load_data("/dev/null")
    with pytest.raises(DataError, match=r"shape \(5,\)"):
        load_data((np.zeros(5), np.zeros(5, int)))
    with pytest.raises(DataError, match=r"\(train\) has shape \(3,\).*\(2,\)"):
        load_data((np.zeros((5, 2)), np.zeros(5, int)), train=(np.zeros((5, 3)), np.zeros(5, int)))
    with pytest.raises(DataError, match="modality is 'pictures'"):
        load_data("sklearn:iris", modality="pictures")
    with pytest.raises(DataError, match=r"label is 'grade'.*no columns"):
        load_data("sklearn:iris", label="grade")
    with pytest.raises(DataError, match=r"arrays has no group 'sex'.*Split\(x, y, groups\)"):
        load_data((np.zeros((5, 2)), np.zeros(5, int)), groups=["sex"])
    for bounds in ((1, 0), (0, 1, 2)):
        with pytest.raises(DataError, match="bounds are"):
            load_data("sklearn:iris", bounds=bounds)


MEASURE = """
import resource, sys
import pyarrow.parquet, torch, hauberk
hauberk.load_data("sklearn:iris")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = hauberk.load_data(sys.argv[1], train=sys.argv[2] if len(sys.argv) > 2 else None)
for start in range(0, len(data.train), 2500):  # a tenth of all, from everywhere
    x, y = data.train.take(torch.arange(start, start + 250))
print(len(data.train), len(data.test), float(x.max()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def measured(*paths):
    told = subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, check=True)
    train, test, top, kilobytes = told.stdout.split()
    return int(train), int(test), float(top), int(kilobytes) / 1024


@pytest.mark.data
def test_cifar_of_the_hub_is_read_in_parts(real_data):
    train, test, top, megabytes = measured(real_data / "cifar10-test.parquet", real_data / "cifar10-train.parquet")
    assert (train, test, top) == (50_000, 10_000, 1.0)
    assert megabytes < 200  # 55 encoded, some more on the way; decoded it is 703


@pytest.mark.data
def test_mnist_stays_bytes(real_data):
    train, test, top, megabytes = measured(real_data / "mnist.npz")
    assert (train, test, top) == (60_000, 10_000, 1.0)
    assert megabytes < 130  # 52 as bytes, 209 as floats
    data = load_data(real_data / "mnist.npz")
    assert torch.bincount(data.test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    x, _ = data.train.first(60_000)
    assert float(x.mean()) == pytest.approx(0.1307, abs=5e-5) and float(x.std()) == pytest.approx(0.3081, abs=5e-5)


@pytest.mark.data
def test_census_has_the_rates_of_the_literature(real_data):
    data = load_data(real_data / "adult.csv.gz", label="income-per-year", groups=("sex", "race"))
    assert len(data.test) == 30_162 and list(data.class_names) == ["<=50K", ">50K"]
    assert float(data.test.y.float().mean()) == pytest.approx(0.2489, abs=5e-5)
    women = data.test.groups["sex"] == data.group_names["sex"].index("Female")
    assert int(women.sum()) == 9782
    x, _ = data.test.tensors()
    assert data.feature_names[0] == "age" and float(x[:, 0].min()) == 17 and float(x[:, 0].max()) == 90
    assert torch.equal(x[:, data.feature_names.index("sex=Female")], women.float())


@pytest.mark.data
def test_other_real_tables(real_data):
    german = load_data(real_data / "german.csv.gz", label="credit", groups=("sex",))
    assert len(german.test) == 1000 and torch.bincount(german.test.y).tolist() == [700, 300]
    compas = load_data(real_data / "compas.csv.gz", label="two_year_recid", groups=("race",))
    assert len(compas.test) == 6167 and compas.classes == 2
    check_ins = load_data(real_data / "location30.npz")
    assert (check_ins.test.x.shape, check_ins.classes) == ((5010, 446), 30)
    assert set(check_ins.test.tensors()[0].unique().tolist()) == {0.0, 1.0}
    faces = load_data(real_data / "orl-faces.npz")
    assert faces.test.shape == (1, 112, 92) and torch.bincount(faces.test.y).tolist() == [10] * 40


def test_labels_that_are_no_classes_are_refused() -> None:
    x = np.zeros((3, 2), dtype=np.float32)
    assert load_data((x, np.array([0, 1, 99_999]))).classes == 100_000
    for highest in (100_000, 10**9, 2**40):
        with pytest.raises(DataError, match=rf"the highest label of .* is {highest}\. Expected at most 100,000 classes"):
            load_data((x, np.array([0, 1, highest])))
    with pytest.raises(DataError, match="highest label"):
        load_data((x, np.array([0, 1, 2**64 - 1], dtype=np.uint64)))
