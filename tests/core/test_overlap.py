"""Overlap of splits, against a comparison of every pair."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hauberk import Data, Split
from hauberk.core import overlap as module
from hauberk.core.overlap import distinct, fingerprints, overlap


def brute(test: Tensor, train: Tensor) -> list[bool]:
    return [bool((train.float() == row.float()).flatten(1).all(1).any()) for row in test]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_it_finds_what_a_comparison_of_all_pairs_finds(seed: int, width: int, kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    # Few values: many samples agree, and more differ in one place only.
    train, test = (torch.randint(-1, 2, (n, 2, width), generator=draw).to(kind) / 2 for n in (40, 30))
    data = Data(Split(test, torch.zeros(30).long()), Split(train.float(), torch.zeros(40).long()), bounds=(-1.0, 1.0), classes=2)
    found = overlap(data)
    assert found.copies.tolist() == brute(test, train)
    assert (found.test, found.train, found.count) == (30, 40, sum(brute(test, train)))


def test_a_hundred_thousand_binary_rows_that_differ_have_different_fingerprints() -> None:
    number = torch.arange(100_000)
    rows = ((number[:, None] >> torch.arange(17)) & 1).float()
    assert len(fingerprints(rows).unique()) == 100_000
    assert len(fingerprints(rows * 0.1).unique()) == 100_000
    assert torch.equal(fingerprints(torch.tensor([[0.0, 1.0]])), fingerprints(torch.tensor([[-0.0, 1.0]])))


def test_bytes_are_compared_as_the_model_sees_them() -> None:
    raw = torch.arange(24, dtype=torch.uint8).reshape(6, 4)
    train = Split(module_rows(raw), torch.arange(6) % 2)
    test = Split(raw[[5, 1]].float() * (1 / 255), torch.tensor([0, 1]))
    assert overlap(Data(test, train, classes=2)).copies.tolist() == [True, True]


def module_rows(raw: Tensor) -> object:
    from hauberk.core.data import TensorRows

    return TensorRows(raw, 1 / 255)


def test_very_large_splits_are_compared_in_an_even_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VALUES", 50)  # ten samples of five inputs
    x = torch.rand(91, 5, generator=torch.Generator().manual_seed(1))
    found = overlap(Data(Split(x, torch.arange(91) % 2), Split(x, torch.arange(91) % 2), classes=2))
    assert found.copies.nonzero()[:, 0].tolist() == list(range(0, 91, 10))
    assert (found.test, found.train, found.share) == (10, 10, 1.0)


def test_fingerprints_are_void_once_the_samples_are_exchanged() -> None:
    x = torch.rand(8, 3, generator=torch.Generator().manual_seed(2))
    data = Data(Split(x, torch.arange(8) % 2), Split(x, torch.arange(8) % 2), classes=2)
    assert overlap(data).count == 8
    data.test.x = Split(1 - x, data.test.y).x
    assert overlap(data).count == 0
    assert overlap(Data(data.test)).count == 0


def test_a_value_and_the_complement_of_its_bits_have_different_fingerprints() -> None:
    x = torch.tensor([[4.0, 1.0], [0.5, 1e-3]])
    other = (~x.view(torch.int32)).view(torch.float32)
    assert float(other[0, 0]) == pytest.approx(-1)  # 4 and -0.99999994, for one
    for column in range(2):
        changed = x.clone()
        changed[:, column] = other[:, column]
        assert bool((fingerprints(x) != fingerprints(changed)).all())


def test_the_first_of_each_record_stays() -> None:
    x, y = torch.tensor([[1.0], [2.0], [1.0], [1.0], [2.0]]), torch.tensor([0, 0, 0, 1, 0])
    assert distinct(x, y).tolist() == [0, 1, 3]
    assert distinct(x[:0], y[:0]).tolist() == [] and distinct(x[:1], y[:1]).tolist() == [0]
