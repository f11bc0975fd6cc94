"""The operations whose per-example gradients are known: one decorated function each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hauberk.privacy.dp.engine.per_example import PerExample

Gradients = dict[str, Callable[[], PerExample]]


@dataclass(frozen=True)
class Rule:
    """How an operation is treated.

    Arguments:
        gradients: given the gradient of the output and the operation's own arguments, all detached, returns for each
            parameter's name a function that works its per-example gradients out.
        parameters: names of the arguments that may be tracked parameters.
        names: of all arguments, in order.
        defaults: of the arguments that have one.
        data: name of the argument with the examples along its first dimension.
        positions: whether any dimensions may stand between the examples and the features.
    """

    gradients: Callable[..., Gradients]
    parameters: tuple[str, ...]
    names: tuple[str, ...]
    defaults: dict[str, Any]
    data: str
    positions: bool

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the call's arguments by name."""
        return {**self.defaults, **dict(zip(self.names, args, strict=False)), **kwargs}


RULES: dict[Callable[..., Any], Rule] = {}
REWRITES: dict[Callable[..., Any], Callable[..., Any]] = {}


def treat(
    *operations: Callable[..., Any], parameters: tuple[str, ...], data: str = "input", positions: bool = False
) -> Callable[[Any], Any]:
    """Register `gradients(g, …the operation's arguments…)` for operations of one signature.

    Arguments:
        operations: torch functions, as torch calls them.
        parameters: names of the arguments that may be trained parameters.
        data: name of the argument with the examples along its first dimension.
        positions: whether any dimensions may stand between the examples and the features, as in a linear layer.
    """

    def register(gradients: Callable[..., Gradients]) -> Callable[..., Gradients]:
        rest = list(inspect.signature(gradients).parameters.values())[1:]
        defaults = {one.name: one.default for one in rest if one.default is not inspect.Parameter.empty}
        rule = Rule(gradients, parameters, tuple(one.name for one in rest), defaults, data, positions)
        RULES.update(dict.fromkeys(operations, rule))
        return gradients

    return register


def rewrite(*operations: Callable[..., Any]) -> Callable[[Any], Any]:
    """Register a function to run in place of an operation: the same result by operations that have rules.

    Its first argument is the interceptor's state, from which it may learn the batch size.
    """

    def register(replacement: Callable[..., Any]) -> Callable[..., Any]:
        REWRITES.update(dict.fromkeys(operations, replacement))
        return replacement

    return register


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors among arguments, two levels deep."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                if isinstance(inner, Tensor):
                    found.append(inner)
                elif isinstance(inner, (list, tuple)):
                    found += [leaf for leaf in inner if isinstance(leaf, Tensor)]
    return found
