"""How much of a model still shows: words in its names, and the shape of its graph."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx

Nodes = Sequence[tuple[str, Sequence[int]]]
_HEX = re.compile(r"[0-9a-f]{8,}")
_WORD = re.compile(r"[A-Z]?[a-z]{2,}|[A-Z]{2,}")


def name_leakage(original: Iterable[str], shipped: Iterable[str]) -> float:
    """Return the share of the words in the original names that are still in the shipped ones; 0 where there are no words.

    A word is a run of two letters or more, in lower case: `layer1.0.conv2.weight` has layer, conv and weight.
    """
    before, after = (set[str]().union(*map(words_of, names)) for names in (original, shipped))
    return len(before & after) / len(before) if before else 0.0


def words_of(name: str) -> set[str]:
    """Return the words in a name, in lower case; a string of hexadecimal digits has none."""
    return set() if _HEX.fullmatch(name) else {word.lower() for word in _WORD.findall(name)}


def graph_similarity(one: Nodes, other: Nodes, *, rounds: int = 3) -> float:
    """Return how alike two graphs are, 0 to 1: the normalised Weisfeiler-Lehman subtree kernel (Shervashidze et al. 2011, JMLR).

    Arguments:
        one, other: nodes as (operation, indices of the nodes they read).
        rounds: how far around a node is looked.
    """
    counts = [_subtrees(nodes, rounds) for nodes in (one, other)]
    inner, left, right = (sum(counts[i][key] * counts[j][key] for key in counts[i]) for i, j in ((0, 1), (0, 0), (1, 1)))
    return inner / (left * right) ** 0.5 if left and right else 0.0


def fx_nodes(graph: fx.GraphModule) -> Nodes:
    """Return the nodes of a traced module, named by what they do."""
    places = {node: at for at, node in enumerate(graph.graph.nodes)}
    modules = dict(graph.named_modules())
    return [
        (
            type(modules[str(node.target)]).__name__ if node.op == "call_module" else
            getattr(node.target, "__name__", str(node.target)) if node.op in ("call_function", "call_method") else node.op,
            [places[one] for one in node.all_input_nodes],
        )
        for node in graph.graph.nodes
    ]


def onnx_nodes(model: Any) -> Nodes:
    """Return the nodes of an ONNX graph, named by their operation."""
    made = {name: at for at, node in enumerate(model.graph.node) for name in node.output if name}
    return [(node.op_type, [made[name] for name in node.input if name in made]) for node in model.graph.node]


def _subtrees(nodes: Nodes, rounds: int) -> Counter[str]:
    labels = [label for label, _ in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for at, (_, read) in enumerate(nodes):
        for one in read:
            users[one].append(at)
    counts = Counter(labels)
    for _ in range(rounds):
        labels = [
            f"{labels[at]}({','.join(sorted(labels[one] for one in read))};{','.join(sorted(labels[one] for one in users[at]))})"
            for at, (_, read) in enumerate(nodes)
        ]
        labels = [_short(label) for label in labels]
        counts.update(labels)
    return counts


def _short(label: str) -> str:
    import hashlib

    return hashlib.sha256(label.encode()).hexdigest()[:16]
