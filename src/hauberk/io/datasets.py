"""load_data: data in the shapes people have it, as samples and labels by role."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hauberk.core.data import Data, Split
from hauberk.core.errors import DataError, nearest
from hauberk.core.threat import Bounds
from hauberk.io import labels
from hauberk.io.arrays import rows_of
from hauberk.io.parts import SINGLE, Part, Source
from hauberk.io.tables import Table, encode

MODALITIES = ("image", "tabular", "other")
KINDS = ".npz, MNIST's IDX, CIFAR python batches, a folder of pictures, .csv, .csv.gz, .parquet, or sklearn:NAME"

SHARD_ROLES = {
    "train": ("train", "training"), "test": ("test", "testing"), "validation": ("validation", "valid", "val", "dev"),
}

Given = Source | dict[str, Table]
"""What a source is opened as: its splits, or tables by role that are encoded together."""


def load_data(
    test: object, *, train: object = None, trusted: object = None, bounds: Bounds | Sequence[float] | None = None,
    label: str | None = None, groups: Sequence[str] = (), modality: str | None = None, name: str | None = None,
) -> Data:
    """Return the data that a model is assessed on.

    Each of `test`, `train` and `trusted` is a path, `sklearn:digits|breast_cancer|wine|iris|diabetes`, a pair `(x, y)` of arrays
    or tensors, a torch `Dataset`, or a `Split`. A path names an `.npz` archive, MNIST's IDX files, a folder of CIFAR's python
    batches, a folder of pictures with a subfolder per class, a `.csv`, `.csv.gz` or `.parquet` file, or a folder of Parquet
    shards. A source that holds both roles (`mnist.npz`, `sklearn:digits`, a folder with `train` and `test`) fills both. Large
    data is memory-mapped or read in parts.

    Arguments:
        test: held-out samples.
        train: samples the model was trained on; categories, classes and scales are learnt from them.
        trusted: a small clean split.
        bounds: lowest and highest input. None: (0, 1); for CSV and Parquet columns, per feature, the range of the data.
        label: the label column of a table; None takes the last.
        groups: columns (of `.npz`: arrays) with the group of each sample.
        modality: `image`, `tabular` or `other`; None judges by the axes. Bytes with two axes or more per sample are images and
            scaled by 1/255; pictures are turned channels first; `other` leaves axes and numbers alone.
        name: how reports call the data.

    Returns:
        The data. Words as labels become codes, with `class_names`; categories become one feature each.

    Raises:
        DataError: for a source that is missing, broken, unsafe, or not understood.
        UsageError: when an optional library is needed.
    """
    if modality is not None and modality not in MODALITIES:
        raise DataError(f"modality is '{modality}'", want=" | ".join(MODALITIES), fix=nearest(modality, MODALITIES))
    if isinstance(groups, str):
        groups = (groups,)
    given: dict[str, Given] = {}
    for role, source in (("test", test), ("train", train), ("trusted", trusted)):
        if source is not None:
            same = next((one for one, other in (("test", test), ("train", train)) if one in given and other is source), None)
            given[role] = given[same] if same is not None else _open(source, label, tuple(groups), modality)
    chosen = {role: _pick(source, role) for role, source in given.items()}
    if train is None and isinstance(given["test"], Source) and "train" in given["test"].parts:
        chosen["train"] = given["test"].parts["train"]
    elif train is None and not isinstance(given["test"], Source) and "train" in given["test"]:
        chosen["train"] = given["test"]["train"]
    if label is not None and not any(map(_has_columns, (test, train, trusted))):
        raise DataError(f"label is '{label}', but this data has no columns", want="label with CSV or Parquet only",
                        fix="Leave it out")
    tables = {role: part for role, part in chosen.items() if not isinstance(part, Part)}
    about = given["test"] if isinstance(given["test"], Source) else None
    if tables:
        encoded = encode(tables, label, tuple(groups))
        about = encoded if about is None else about
        chosen.update(encoded.parts)
    assert about is not None
    parts = cast("dict[str, Part]", chosen)
    return _joined(parts, about, _bounds(bounds), modality, tuple(groups), name or _name(test) or about.name)


def _joined(
    parts: Mapping[str, Part], about: Source, bounds: Bounds | None, modality: str | None, wanted: Sequence[str], name: str
) -> Data:
    codes, class_names = labels.coded_labels(parts)
    groups, group_names = labels.coded_groups(parts)
    for group in wanted:
        if group not in groups["test"]:
            raise DataError(f"{parts['test'].where} has no group '{group}'", want="a group that the data names",
                            fix="Groups are columns of CSV or Parquet, arrays of .npz, or given with Split(x, y, groups)")
    shape = parts["test"].x.shape[1:]
    for role, part in parts.items():
        if part.x.shape[1:] != shape:
            raise DataError(
                f"a sample of {part.where} ({role}) has shape {tuple(part.x.shape[1:])}",
                want=f"{tuple(shape)} as in the test split", fix="Give splits of the same data",
            )
    splits = {role: Split(part.x, codes[role], groups[role]) for role, part in parts.items()}
    most = max((int(y.max()) + 1 for y in codes.values() if len(y) and not y.is_floating_point()), default=0)
    found = bounds if bounds is not None else about.bounds
    return Data(
        splits["test"], splits.get("train"), splits.get("trusted"), bounds=found if found is not None else (0.0, 1.0),
        classes=max(most, len(class_names)) or None, modality=modality or about.modality, class_names=class_names,
        feature_names=list(about.feature_names), name=name, group_names=group_names,
    )


def _open(source: object, label: str | None, groups: Sequence[str], modality: str | None) -> Given:
    if isinstance(source, (str, Path)):
        return _open_path(str(source), label, groups, modality)
    if isinstance(source, Split):
        held = {name: group.cpu().numpy() for name, group in source.groups.items()}
        return Source("the split", {SINGLE: Part(source.x, source.y.cpu().numpy(), "the split", held)})
    if isinstance(source, Dataset):
        from hauberk.io.torchset import open_dataset

        return open_dataset(source, modality)
    if isinstance(source, (tuple, list)) and len(source) == 2:
        x, y = (one if isinstance(one, Tensor) else np.asarray(one) for one in source)
        y = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
        return Source("the arrays", {SINGLE: Part(rows_of(x, modality, "the arrays"), y, "the arrays")})
    raise DataError(
        f"data is given as {type(source).__name__}", want="a path, sklearn:NAME, a pair (x, y), a torch Dataset or a Split",
        fix="For arrays write load_data((x_test, y_test), train=(x_train, y_train))",
    )


def _open_path(text: str, label: str | None, groups: Sequence[str], modality: str | None) -> Given:
    from hauberk.io.bundled import NAMES, open_bundled

    scheme, found, rest = text.partition(":")
    path = Path(text).expanduser()
    if found and re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme) and not path.exists():
        if scheme == "sklearn":
            return open_bundled(rest, groups)
        raise DataError(
            f"'{text[:80]}' has the scheme '{scheme}:'", want="a path, or sklearn:" + "|".join(NAMES),
            fix="Download it first: Hauberk fetches nothing by itself",
        )
    if not path.exists():
        beside = sorted(one.name for one in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(f"{path} does not exist", want="a file or folder of data",
                        fix=nearest(path.name, beside) if beside else f"The folder {path.parent} does not exist either")
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder", want=KINDS)
    try:
        return _open_folder(path, label, groups, modality) if path.is_dir() else _open_file(path, label, groups, modality)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})", want="data that may be read") from error


def _open_file(path: Path, label: str | None, groups: Sequence[str], modality: str | None) -> Given:
    from hauberk.io import cifar, idx

    name = path.name.lower()
    if name.endswith(".npz"):
        from hauberk.io.npz import open_npz

        return open_npz(path, groups, modality)
    if name.endswith((".csv", ".csv.gz")):
        from hauberk.io.csvfile import CsvTable

        return {SINGLE: CsvTable(path)}
    if name.endswith((".parquet", ".pq")):
        return _parquet({SINGLE: [path]}, path, label, groups)
    if idx.looks_like_idx(path):
        return idx.open_idx(path, modality)
    if cifar.looks_like_cifar(path):
        return cifar.open_cifar(path)
    fix = "Save arrays with numpy.savez(path, x=x, y=y)" if name.endswith((".npy", ".pt", ".pkl", ".pickle", ".mat")) else ""
    raise DataError(f"{path} is of no kind that is understood", want=KINDS, fix=fix or "Convert it to one of them")


def _open_folder(path: Path, label: str | None, groups: Sequence[str], modality: str | None) -> Given:
    from hauberk.io import cifar, idx

    shards = sorted(one for one in path.iterdir() if one.suffix.lower() in (".parquet", ".pq"))
    if shards:
        return _parquet(_shards(shards), path, label, groups)
    if any(idx.looks_like_idx(one) for one in path.iterdir() if one.is_file()):
        return idx.open_idx(path, modality)
    if cifar.looks_like_cifar(path):
        return cifar.open_cifar(path)
    from hauberk.io.images import open_folder

    return open_folder(path)


def _shards(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Parquet files by the role in their names, such as `train-00000-of-00002.parquet`; validation serves where no test is."""
    found: dict[str, list[Path]] = {}
    for file in files:
        words = set(re.split(r"[^a-z]+", file.stem.lower()))
        role = next((role for role, names in SHARD_ROLES.items() if words & set(names)), SINGLE)
        found.setdefault(role, []).append(file)
    if SINGLE in found and len(found) > 1:
        raise DataError(
            f"{found[SINGLE][0]} names no role, but other files beside it do", want="train or test in the name of every file",
            fix="Give the files of each role by themselves",
        )
    validation = found.pop("validation", None)
    if validation is not None and "test" not in found:
        found["test"] = validation
    return found


def _parquet(roles: Mapping[str, Sequence[Path]], path: Path, label: str | None, groups: Sequence[str]) -> Given:
    from hauberk.io.parquet import parquet_rows

    read = {role: parquet_rows(files, label, groups) for role, files in roles.items()}
    parts = {role: part for role, part in read.items() if isinstance(part, Part)}
    if parts:
        return Source(str(path), parts, modality="image")
    return {role: cast(Table, part) for role, part in read.items()}


def _has_columns(source: object) -> bool:
    if not isinstance(source, (str, Path)):
        return False
    return str(source).lower().endswith((".csv", ".csv.gz", ".parquet", ".pq")) or Path(source).expanduser().is_dir()


def _pick(source: Given, role: str) -> Part | Table:
    held: Mapping[str, Any] = source.parts if isinstance(source, Source) else source
    if SINGLE in held:
        return cast("Part | Table", held[SINGLE])
    if role in held:
        return cast("Part | Table", held[role])
    where = source.where if isinstance(source, Source) else next(iter(source.values())).where
    raise DataError(f"{where} holds {' and '.join(sorted(held))}, not {role}", want=f"a source with a {role} split",
                    fix="Give a source that holds one split alone")


def _bounds(given: Bounds | Sequence[float] | None) -> Bounds | None:
    if given is None:
        return None
    if isinstance(given, (str, bytes)) or len(given) != 2:
        raise DataError(f"bounds are {given!r}", want="(lowest, highest)", fix="Give two numbers, or two arrays")
    low, high = (one if isinstance(one, (int, float)) else torch.as_tensor(one) for one in given)
    if not bool((torch.as_tensor(low) <= torch.as_tensor(high)).all()):
        raise DataError(f"bounds are ({low}, {high})", want="(lowest, highest)", fix="Swap the two ends")
    return low, high


def _name(source: object) -> str:
    if not isinstance(source, (str, Path)):
        return ""
    text = str(source)
    if text.startswith("sklearn:"):
        return text.partition(":")[2]
    return re.sub(r"(\.(npz|csv|parquet|pq|gz|idx))+$", "", Path(text).expanduser().resolve().name, flags=re.IGNORECASE)
