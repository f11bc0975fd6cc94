"""What the layers of a model are, guessed from the names and shapes of their tensors."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Protocol


class Described(Protocol):
    """Anything with the name, type and shape of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclasses.dataclass(frozen=True)
class Layer:
    """Layers of one kind, at places that differ in a number alone.

    Arguments:
        place: the name of the layer, `*` for a number that runs.
        kind: what it is, with its sizes.
        count: how many there are.
        parameters: elements of all of them.
    """

    place: str
    kind: str
    count: int
    parameters: int


def layers(tensors: Sequence[Described], classes: Mapping[str, str] | None = None) -> list[Layer]:
    """Return the layers behind tensors, in their order.

    Arguments:
        tensors: of the model.
        classes: by place, the classes that the file names; where there is none, the kind is inferred.
    """
    groups: dict[str, list[Described]] = {}
    for one in tensors:
        groups.setdefault(one.name.rpartition(".")[0], []).append(one)
    gathered: dict[tuple[str, str], tuple[list[str], list[int]]] = {}
    for place, members in groups.items():
        guess = kind_of(place, members)
        named = (classes or {}).get(place, "").rpartition(".")[2]
        kind = named + guess[guess.find("(") :] if named and "(" in guess else named or guess
        entry = gathered.setdefault((re.sub(r"(?<![^.])\d+(?![^.])", "*", place), kind), ([], []))
        entry[0].append(place)
        entry[1].append(sum(math.prod(one.shape) for one in members))
    return [
        Layer(_common(places), kind, len(places), sum(sizes)) for (_, kind), (places, sizes) in gathered.items()
    ]


def kind_of(place: str, members: Sequence[Described]) -> str:
    """Return what a layer with these tensors is, as far as names and shapes tell; `parameters` where they do not."""
    parts = {one.name.rpartition(".")[2]: one.shape for one in members}
    weight = parts.get("weight", ())
    if "running_mean" in parts:
        return f"BatchNorm({_size(parts['running_mean'])})"
    if "in_proj_weight" in parts and len(parts["in_proj_weight"]) == 2:
        return f"MultiheadAttention({parts['in_proj_weight'][1]})"
    if "weight_ih_l0" in parts and len(parts.get("weight_hh_l0", ())) == 2:
        rows, hidden = parts["weight_hh_l0"]
        kind = {4: "LSTM", 3: "GRU", 1: "RNN"}.get(rows // max(hidden, 1), "recurrent")
        return f"{kind}({parts['weight_ih_l0'][-1]} → {hidden})"
    if any(name in parts for name in ("qweight", "weight_packed", "packed_weight", "weight_scale", "_packed_params")):
        return "quantised layer"
    if len(weight) in (3, 4, 5):
        kernel = "×".join(str(length) for length in weight[2:])
        return f"Conv{len(weight) - 2}d({weight[1]} → {weight[0]}, {kernel})"
    if len(weight) == 2:
        if re.search(r"emb|wte|wpe", place.lower()) and "bias" not in parts:
            return f"Embedding({weight[0]}, {weight[1]})"
        return f"Linear({weight[1]} → {weight[0]})"
    if len(weight) == 1:
        return f"LayerNorm({weight[0]})" if "bias" in parts else f"RMSNorm({weight[0]})"
    return "parameters"


def _common(places: Sequence[str]) -> str:
    """Return what places have in common, `*` where they differ."""
    parts = zip(*(place.split(".") for place in places), strict=True)
    return ".".join(some[0] if len(set(some)) == 1 else "*" for some in parts)


def _size(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1
