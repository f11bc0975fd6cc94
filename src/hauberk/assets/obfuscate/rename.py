"""Names and shapes taken away: a file that tells nothing of what its tensors are, with the map back in other hands."""

from __future__ import annotations

import copy
import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from hauberk.assets.obfuscate.draws import Draws, new_key
from hauberk.assets.obfuscate.fx_reader import traced
from hauberk.core.errors import DataError


@dataclasses.dataclass(frozen=True)
class Renamed:
    """Tensors under names that say nothing.

    Arguments:
        state: the tensors; one-dimensional where shapes were stripped.
        names: for each new name the old name and shape: keep it apart from the file.
    """

    state: dict[str, Tensor]
    names: dict[str, tuple[str, tuple[int, ...]]]


def rename(state: Mapping[str, Tensor], *, key: bytes | None = None, shapes: bool = False) -> Renamed:
    """Return the tensors in an order, and under names, that only the map beside them undoes; bit for bit the same values.

    Arguments:
        state: tensors by name.
        key: of the names, 32 bytes, for the same names again; None draws one.
        shapes: strip shapes too: every tensor becomes a row of numbers.

    Returns:
        The renamed tensors and the map.
    """
    draws = Draws(new_key() if key is None else key, b"names", "names")
    old = list(state)
    fresh = [f"{int(word):016x}" for word in draws.words(len(old))]
    order = draws.permutation(len(old)).tolist()
    chosen = {fresh[at]: old[at] for at in order}
    made = {new: state[name].reshape(-1) if shapes else state[name] for new, name in chosen.items()}
    return Renamed(made, {new: (name, tuple(state[name].shape)) for new, name in chosen.items()})


def restore(state: Mapping[str, Tensor], names: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Return the tensors under their old names and in their old shapes.

    Raises:
        DataError: where map and tensors do not belong together.
    """
    if set(state) != set(names):
        odd = sorted(set(state) ^ set(names))
        told = f"{len(odd)} names are in the tensors or in the map alone, such as '{odd[0]}'"
        raise DataError(told, want="the map of these tensors")
    made = {}
    for new, (name, shape) in names.items():
        size = 1
        for one in shape:
            size *= one
        if state[new].numel() != size:
            raise DataError(f"'{new}' holds {state[new].numel()} values", want=f"{size}, for the shape {tuple(shape)}")
        made[name] = state[new].reshape(tuple(shape))
    return made


def rename_module(module: nn.Module, example: Tensor) -> fx.GraphModule:
    """Return the module as a flat graph whose nodes, layers and tensors have names that say nothing; the answers are the same.

    Class names, nesting, source lines and module names are gone; which operations follow which stays visible: see `scatter`.

    Arguments:
        module: taken in evaluation mode; not changed.
        example: a batch of inputs, (n, ...).

    Raises:
        ModelError: for a module that cannot be traced.
    """
    graph = traced(module, example)
    root, parts = nn.Module(), dict[str, str]()
    held: dict[int, str] = {}
    for node in graph.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            if target not in parts:
                thing = _reached(graph, target)
                name = held.setdefault(id(thing), secrets.token_hex(6).translate(_LETTERS))
                parts[target] = name
                _put(root, name, thing)
            node.target = parts[target]
        node.meta = {}
    flat = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for at, node in enumerate(graph.graph.nodes):
        copied = flat.node_copy(node, lambda one: copies[one])
        copied.name = f"n{at}" if node.op != "output" else "output"
        copied.meta = {}
        copies[node] = copied
    made = fx.GraphModule(root, flat, class_name="Module")
    made.meta.clear()
    return made.train(False)


_LETTERS = str.maketrans("0123456789", "ghijklmnop")  # an attribute must begin with a letter


def _reached(graph: fx.GraphModule, target: str) -> Any:
    found: Any = graph
    for step in target.split("."):
        found = getattr(found, step)
    whole = not isinstance(found, nn.Module) or is_parametrized(found)  # torch does not copy those
    return found if whole else copy.copy(found)


def _put(root: nn.Module, name: str, thing: Any) -> None:
    if isinstance(thing, Tensor) and not isinstance(thing, nn.Parameter):
        root.register_buffer(name, thing)
    else:
        setattr(root, name, thing)
