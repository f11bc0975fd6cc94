"""DP-FTRL: sums of gradients so far by tree aggregation, private without sampling or shuffling."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.mechanisms.correlated import CorrelatedNoise
from hauberk.privacy.dp.noise import Source


class TreeNoise(CorrelatedNoise):
    """Noise whose sum after t steps is that of the binary tree's nodes that make up 1 ... t: log2(t) of them, not t.

    Each node has noise of its own; a step adds the node it completes and takes back the smaller ones that this node replaces.
    A record may take part once in each tree: one tree an epoch, with no shuffling or sampling asked for.

    Arguments:
        noise_multiplier: standard deviation of a node over the clip, at least 0.
        steps: leaves of one tree, the steps of an epoch.
        trees: epochs.
        efficient: estimate each node from its own noise and its children's (Honaker 2015): up to half the variance, for about two
            draws a step.

    Paper: Kairouz, McMahan, Song, Thakkar, Thakurta and Xu 2021, arXiv:2103.00039; Dwork, Naor, Pitassi and Rothblum 2010, STOC;
    Chan, Shi and Song 2011.
    """

    name = "tree"

    def __init__(self, noise_multiplier: float, steps: int, *, trees: int = 1, efficient: bool = False) -> None:
        super().__init__(noise_multiplier)
        if steps < 1 or trees < 1:
            raise UsageError(f"{trees} trees of {steps} steps were asked for", want="at least one of each")
        self.steps, self.trees, self.efficient = steps, trees, efficient

    @property
    def releases(self) -> tuple[Release, ...]:
        """The trees begun so far: each counts whole."""
        begun = -(-self.step // self.steps)
        return (Release("tree", self.noise_multiplier, count=begun, population=self.steps),)

    def _scale(self) -> float:
        return self.noise_multiplier

    def _plan(self) -> dict[str, Any]:
        return {"kind": "tree", "noise_multiplier": self.noise_multiplier, "steps": self.steps, "efficient": self.efficient}

    def _check(self, step: int) -> None:
        if step >= self.steps * self.trees:
            raise UsageError(f"step {step} was asked for", want=f"fewer than {self.steps} x {self.trees} steps",
                             fix="Make the tree as large as the run before it begins: the noise must be planned")

    def _draw(self, memory: list[Tensor | None], step: int, like: Tensor, source: Source) -> Tensor:
        leaf = step % self.steps
        if leaf == 0:
            memory[:] = [None] * self.steps.bit_length()  # the sum of the last tree stays as it was
        level = (~leaf & (leaf + 1)).bit_length() - 1  # the node that leaf completes, counted from the leaves
        taken = [one for one in memory[:level] if one is not None]
        made = _estimate(taken, like, source) if self.efficient else source.normal(like)
        memory[:level], memory[level] = [None] * level, made
        change = made.clone()
        for one in taken:
            change -= one
        return change


def _estimate(left: list[Tensor], like: Tensor, source: Source) -> Tensor:
    """The best estimate of the error of a node from its own noise and that of all below it; `left` by level, from the leaves."""
    found, variance = source.normal(like), 1.0
    for sibling in left:
        # Own noise has variance 1; the two children together twice that of one.
        weight = 2 * variance / (1 + 2 * variance)
        found, variance = source.normal(like).mul_(weight).add_(sibling + found, alpha=1 - weight), weight
    return found


def tree_variance(steps: int, *, efficient: bool = False) -> list[float]:
    """Return the variance of the sum of the noise after 1 ... `steps` steps of one tree, in units of a node's."""
    node = [1.0]
    while len(node) < steps.bit_length():
        node.append(2 * node[-1] / (1 + 2 * node[-1]) if efficient else 1.0)
    return [math.fsum(node[level] for level in range(t.bit_length()) if t >> level & 1) for t in range(1, steps + 1)]
