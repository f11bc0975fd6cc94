"""The attack report: what an obfuscated model still gives away, what it costs, and what adversaries without the key reach."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.assets.obfuscate import attacks
from hauberk.assets.obfuscate.attacks import Samples, accuracy
from hauberk.assets.obfuscate.decoys import branch_names
from hauberk.core.errors import DataError
from hauberk.core.finding import Interval
from hauberk.core.stats import newcombe, wilson


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What one adversary reaches.

    Arguments:
        attack: its name.
        accuracy: on the test samples, the mean over seeds.
        interval: of it, Wilson's on the samples of one seed.
        nothing: the accuracy of the same attack on fresh weights, which hold nothing to steal; None where there is no such thing.
        has: what the adversary has beside the file.
    """

    attack: str
    accuracy: float
    interval: Interval
    nothing: float | None
    has: str


@dataclasses.dataclass(frozen=True)
class AttackReport:
    """What obfuscation is worth.

    Arguments:
        owner: accuracy with the key.
        n: test samples.
        attempts: of adversaries without it.
        evaluations: of the branch search, 0 where there are no decoys.
    """

    owner: float
    n: int
    attempts: tuple[Attempt, ...]
    evaluations: int = 0

    @property
    def worst(self) -> Attempt:
        """The attempt that gains most over fresh weights."""
        return max(self.attempts, key=lambda one: one.accuracy - (one.nothing or 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Return the report in JSON's terms."""
        made = dataclasses.asdict(self)
        made["attempts"] = [{**row, "interval": [row["interval"]["low"], row["interval"]["high"]]} for row in made["attempts"]]
        return made

    def lines(self) -> list[str]:
        """Return the report as text, a line an attempt."""
        rows = [f"with the key: accuracy {self.owner:.3f} (n = {self.n})"]
        for one in self.attempts:
            beside = "" if one.nothing is None else f"; the same on fresh weights {one.nothing:.3f}"
            rows.append(
                f"{one.attack}: {one.accuracy:.3f} [{one.interval.low:.3f}, {one.interval.high:.3f}]{beside}; it takes {one.has}"
            )
        if self.evaluations:
            rows.append(f"the branch search took {self.evaluations} evaluations")
        return [*rows, self.verdict()]

    def verdict(self) -> str:
        """Return in one line whether more was taken than labels alone would have given."""
        worst = self.worst
        beside = [one.nothing for one in self.attempts if one.nothing is not None]
        base = worst.nothing if worst.nothing is not None else max(beside, default=0.0)
        hits, without = round(worst.accuracy * self.n), round(base * self.n)
        # The worst of so many attempts was picked: the interval is that much wider (Bonferroni).
        gain, span = worst.accuracy - base, newcombe(hits, self.n, without, self.n, 1 - 0.05 / max(1, len(self.attempts)))
        told = f"{worst.attack} gains {100 * gain:+.1f} points over fresh weights [{100 * span.low:+.1f}, {100 * span.high:+.1f}]"
        if span.low > 0:
            return f"verdict: something is stolen: {told}"
        return f"verdict: nothing is surely stolen: {told} at most"


_ATTACKS: dict[str, Callable[[nn.Module, Samples, int], nn.Module]] = {
    "renormalised": lambda module, few, _: attacks.renormalise(module, few),
    "rank matching": lambda module, few, _: attacks.rank_matching(module, few),
    "rank matching, classes assigned": lambda module, few, _: attacks.rank_matching(module, few, assign=True),
    "fine-tuned": lambda module, few, seed: attacks.few_shot(module, few, seed=seed),
    "fine-tuned after rank matching": lambda module, few, seed: attacks.few_shot(
        attacks.rank_matching(module, few), few, seed=seed
    ),
}


def attack_report(
    original: nn.Module, shipped: nn.Module, train: Samples, test: Samples, *, part: float = 0.01, seeds: int = 3
) -> AttackReport:
    """Return what adversaries without the key make of a shipped module.

    All know the architecture. Weights are taken as they are, renormalised, matched by rank (see `attacks`), with and without
    labels to say which output is which class, and fine-tuned on a part of the training samples; beside each stands the same
    attack on fresh weights. Only what is above that was stolen.

    Arguments:
        original: as its owner has it.
        shipped: the same architecture with the weights of the file, or a module with decoys; not changed.
        train: samples of which the adversary has a part, x of shape (n, ...) and y of shape (n,).
        test: samples that score, likewise.
        part: the adversary's share of `train`; ten samples at least.
        seeds: repeats, each with other samples and fresh weights.

    Raises:
        DataError: without samples.
    """
    if not len(train[0]) or not len(test[0]):
        raise DataError(f"{len(train[0])} training and {len(test[0])} test samples", want="some of both")
    decoys = bool(branch_names(shipped))
    table: dict[str, tuple[str, list[float], list[float]]] = {}
    evaluations = 0
    for seed in range(seeds):
        few, empty = attacks.share(train, part, seed), attacks.fresh(original, seed)
        has = f"{len(few[0])} labelled samples"

        def put(name: str, what: str, got: nn.Module, none: nn.Module | None) -> None:
            row = table.setdefault(name, (what, [], []))
            row[1].append(accuracy(got, test))
            if none is not None:
                row[2].append(accuracy(none, test))

        put("as shipped", "the file", shipped, empty)
        if decoys:
            found, spent = attacks.search_branches(shipped, few)
            evaluations = spent
            put("branch search", has, found, None)
            continue
        for name, attack in _ATTACKS.items():
            put(name, has, attack(shipped, few, seed), attack(empty, few, seed))
    attempts = []
    for name, (what, got, none) in table.items():
        mean = statistics.fmean(got)
        span = wilson(round(mean * len(test[0])), len(test[0]))
        attempts.append(Attempt(name, mean, span, statistics.fmean(none) if none else None, what))
    return AttackReport(accuracy(original, test), len(test[0]), tuple(attempts), evaluations)


def latency(one: nn.Module, other: nn.Module, x: Tensor, *, rounds: int = 30) -> float:
    """Return the median ratio of the second module's CPU time to the first's, run in turn."""
    shares = []
    with torch.no_grad():
        for turn in range(rounds + 3):
            spent = []
            for module in ((one, other) if turn % 2 else (other, one)):
                began = time.process_time()
                module(x)
                spent.append(time.process_time() - began)
            first, second = spent if turn % 2 else spent[::-1]
            if turn >= 3 and first > 0:
                shares.append(second / first)
    return statistics.median(shares) if shares else float("nan")


def size_ratio(original: Mapping[str, Tensor], shipped: Mapping[str, Tensor]) -> float:
    """Return the bytes of the shipped tensors over those of the original ones."""
    return _bytes(shipped.values()) / max(_bytes(original.values()), 1)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def with_weights(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a module with other weights."""
    made = copy.deepcopy(module)
    made.load_state_dict(dict(state))
    return made
