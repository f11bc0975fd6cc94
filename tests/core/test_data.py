"""Data and Split: samples by position, seeded draws, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hauberk import Data, Split
from hauberk.core.data import TensorRows
from hauberk.core.errors import DataError


def numbered(n=20):
    return Split(torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n) % 4)


def test_bytes_are_scaled_when_read_and_stay_bytes():
    rows = TensorRows(torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1), 1 / 255)
    read = rows.take(torch.arange(256))
    assert rows.values.dtype == torch.uint8 and read.dtype == torch.float32
    assert torch.allclose(read.flatten(), torch.arange(256) / 255, atol=1e-7)
    assert float(read.max()) == 1.0 and float(read.min()) == 0.0


def test_batches_cover_everything_once_in_order():
    parts = list(numbered(10).batches(4))
    assert [len(y) for _, y in parts] == [4, 4, 2]
    assert torch.cat([x for x, _ in parts]).flatten().tolist() == list(range(10))


def test_draws_are_seeded_sorted_and_without_repetition():
    data = numbered(1000)
    first = data.pick(100, 5, "check")
    assert torch.equal(first, data.pick(100, 5, "check"))
    assert not torch.equal(first, data.pick(100, 5, "other")) and not torch.equal(first, data.pick(100, 6, "check"))
    assert len(first.unique()) == 100 and torch.equal(first, first.sort().values)
    assert data.pick(2000, 0).tolist() == list(range(1000))
    x, y = data.sample(100, 5, "check")
    assert torch.equal(x.flatten().long(), first) and torch.equal(y, first % 4)


def test_draws_are_uniform():
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[numbered(10).pick(3, seed)] += 1
    # Each position is in 30 % of the draws; five standard errors.
    assert float((counts / 2000 - 0.3).abs().max()) < 5 * (0.21 / 2000) ** 0.5


def test_shapes_classes_and_modality_are_found():
    image = Data(Split(torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 6])))
    assert (image.classes, image.modality, image.test.shape) == (7, "image", (1, 8, 8))
    table = Data((torch.zeros(3, 5), torch.tensor([0, 1, 1])), (torch.zeros(2, 5), torch.tensor([0, 4])))
    assert (table.classes, table.modality, list(table.splits())) == (5, "tabular", ["test", "train"])
    amounts = Data(Split(torch.zeros(3, 5), torch.tensor([0.5, 1.5, 2.5])))
    assert amounts.classes is None and not amounts.is_classification
    assert Data(Split(torch.zeros(3, 7, 5), torch.zeros(3))).modality == "other"


def test_labels_become_int64_and_flat():
    made = Split(torch.zeros(3, 2), np.array([[1], [2], [0]], np.uint8))
    assert made.y.dtype == torch.int64 and made.y.tolist() == [1, 2, 0]


def test_lengths_that_differ_are_refused():
    with pytest.raises(DataError, match=r"4 samples and 3 labels.*same split"):
        Split(torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(DataError, match=r"'sex' has 2 entries.*4"):
        Split(torch.zeros(4, 2), torch.zeros(4), {"sex": torch.zeros(2)})


def test_data_and_splits_are_shown_in_one_line():
    x, y = torch.zeros(54, 13), torch.arange(54) % 3
    data = Data(Split(x, y), Split(torch.zeros(124, 13), torch.arange(124) % 3), name="wine")
    assert repr(data) == "Data(wine: 54 test, 124 train, (13,), 3 classes, bounds [0, 1])"
    assert repr(data.test) == "Split(54 samples, (13,), labels)"
    ends = (torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 3.5]))
    assert repr(Data(Split(torch.zeros(4, 2), torch.rand(4)), bounds=ends)) == (
        "Data(data: 4 test, (2,), numbers to predict, bounds [-2, 3.5] by feature)"
    )
    assert repr(Split(x, y, {"sex": y})) == "Split(54 samples, (13,), labels, groups sex)"
