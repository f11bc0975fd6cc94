"""Parts: what a source of data gives before labels are coded: samples, raw labels and raw groups, by role."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from hauberk.core.data import Rows
from hauberk.core.threat import Bounds

SINGLE = ""
"""The role of a source that holds one split, whichever role it is given."""

MEMORY_LIMIT = 4 << 30
"""Bytes that one array may take when it cannot be memory-mapped; a small hostile file can claim any size."""


@dataclasses.dataclass
class Part:
    """One split as its source has it.

    Arguments:
        x: the samples.
        y: labels as found: whole numbers, words, or amounts.
        groups: by name, the group of each sample as found.
        where: the file or object, for messages.
        class_names: the classes the source declares, in the order of their codes; may be empty.
    """

    x: Rows
    y: NDArray[Any]
    where: str
    groups: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    class_names: Sequence[str] = ()


@dataclasses.dataclass
class Source:
    """The splits of one source, by role (`train`, `test`, or `SINGLE`), and what it says of its inputs."""

    where: str
    parts: dict[str, Part]
    name: str = "data"
    feature_names: Sequence[str] = ()
    group_names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    bounds: Bounds | None = None
    modality: str = ""
