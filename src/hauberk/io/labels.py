"""Labels and groups: what they came as, turned into codes that mean the same in every split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.io.parts import Part

GROUP_LIMIT = 50
CLASS_LIKE = 100
CLASS_LIMIT = 100_000  # far above any classifier, far below what identifiers, dates or amounts in cents reach


def coded_labels(parts: Mapping[str, Part]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the labels of each split as int64 codes or floating amounts, and the names of the classes (may be empty).

    Whole numbers are codes already. Words are coded in sorted order, as learnt from the training split where there is one, else
    from the test split. Numbers with fractions are amounts: regression.

    Raises:
        DataError: for labels that are neither, that differ in kind between splits, or that the training split does not know.
    """
    flat = {role: _flat(part) for role, part in parts.items()}
    first = "train" if "train" in parts else next(iter(parts))
    kinds = {role: _kind(y) for role, y in flat.items() if len(y)}
    if len(set(kinds.values())) > 1:
        raise DataError(
            "the splits differ in their labels: " + ", ".join(f"{role} has {kind}" for role, kind in kinds.items()),
            want="one kind of label", fix="Write the labels of all splits in the same way",
        )
    kind = next(iter(kinds.values()), "codes")
    if kind == "words":
        names = list(parts[first].class_names) or sorted(set(flat[first].tolist()))
        return {role: _coded(y, names, parts[role].where) for role, y in flat.items()}, names
    if kind == "amounts":
        return {role: torch.from_numpy(y.astype(np.float32)) for role, y in flat.items()}, []
    for role, y in flat.items():
        if len(y) and int(y.min()) < 0:
            raise DataError(
                f"the lowest label of {parts[role].where} is {int(y.min())}", want="classes counted from 0",
                fix="Map the labels to 0, 1, 2, … first",
            )
        if len(y) and int(y.max()) >= CLASS_LIMIT:
            raise DataError(
                f"the highest label of {parts[role].where} is {int(y.max())}", want=f"at most {CLASS_LIMIT:,} classes, from 0",
                fix="Check which column holds the labels; map them to 0, 1, 2, … if they are codes",
            )
    return {role: torch.from_numpy(y.astype(np.int64)) for role, y in flat.items()}, list(parts[first].class_names)


def coded_groups(parts: Mapping[str, Part]) -> tuple[dict[str, dict[str, Tensor]], dict[str, list[str]]]:
    """Return the groups of each split as int64 codes in sorted order, the same in every split, and the names of the codes."""
    codes: dict[str, dict[str, Tensor]] = {role: {} for role in parts}
    names: dict[str, list[str]] = {}
    for group in dict.fromkeys(name for part in parts.values() for name in part.groups):
        holders = {role: np.asarray(part.groups[group]).reshape(-1) for role, part in parts.items() if group in part.groups}
        for role, values in holders.items():
            if len(values) != len(parts[role].y):
                raise DataError(
                    f"group '{group}' of {parts[role].where} has {len(values)} entries",
                    want=f"{len(parts[role].y)}, one per sample",
                )
        known = np.unique(np.concatenate(list(holders.values())))
        if len(known) > GROUP_LIMIT:
            raise DataError(
                f"group '{group}' has {len(known)} different values", want=f"at most {GROUP_LIMIT}",
                fix="Put its values into bins (such as age bands) in a column of its own, and name that",
            )
        names[group] = [_word(value) for value in known]
        for role, values in holders.items():
            codes[role][group] = torch.from_numpy(np.searchsorted(known, values).astype(np.int64))
    return codes, names


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def amounts(values: NDArray[Any], where: str) -> NDArray[np.float64]:
    """Return the targets of a regression.

    Raises:
        DataError: when they are not finite, or look like classes that were written as decimals: nobody is asked to guess.
    """
    y = values.astype(np.float64)
    bad = int((~np.isfinite(y)).sum())
    if bad:
        raise DataError(f"{bad} of {len(y)} labels of {where} are not finite", want="a label for every sample",
                        fix="Leave out the samples without a label")
    if len(y) and bool((y == np.round(y)).all()) and y.min() >= 0 and len(np.unique(y)) <= min(CLASS_LIKE, max(2, len(y) // 2)):
        raise DataError(
            f"the labels of {where} are whole numbers written as decimals, such as {y[0]:.1f}", want="integers for classes",
            fix="Convert them with y.astype('int64'); for regression on such targets build Data(Split(x, y)) yourself",
        )
    return y


def _flat(part: Part) -> NDArray[Any]:
    y = np.asarray(part.y)
    if y.ndim != 1 and not (y.ndim == 2 and y.shape[1] == 1):
        raise DataError(
            f"the labels of {part.where} have shape {y.shape}", want="one label per sample, shape (n,)",
            fix="For one-hot labels give y.argmax(1)",
        )
    y = y.reshape(-1)
    if len(y) != len(part.x):
        raise DataError(
            f"{part.where} has {len(part.x)} samples and {len(y)} labels", want="one label per sample",
            fix="Check that x and y come from the same split",
        )
    if y.dtype.kind == "O" and all(isinstance(one, str) for one in y):
        y = y.astype(str)
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "replace")
    if y.dtype.kind not in "biufU":
        raise DataError(
            f"the labels of {part.where} have type {y.dtype}", want="integers, words, or decimals for regression",
            fix="Convert them with y.astype('int64')",
        )
    return amounts(y, part.where) if y.dtype.kind == "f" else y


def _kind(y: NDArray[Any]) -> str:
    return {"U": "words", "f": "amounts"}.get(y.dtype.kind, "codes")


def _coded(y: NDArray[Any], names: Sequence[str], where: str) -> Tensor:
    place = {name: code for code, name in enumerate(names)}
    strange = sorted(set(y.tolist()) - set(place))
    if strange:
        raise DataError(
            f"{where} has the label '{strange[0]}', which the training split does not know",
            want="one of " + ", ".join(names[:12]), fix="Check the spelling, or leave these samples out",
        )
    return torch.tensor([place[one] for one in y.tolist()], dtype=torch.int64)
