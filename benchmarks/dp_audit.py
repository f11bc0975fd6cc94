"""Audits of honest and of broken private training: the ε claimed, and the ε that canaries show, over repeats."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from harness import save
from hauberk import Split
from hauberk.core.stats import clopper_pearson
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.dp.audit import WhiteBox, audit_training

sys.path.append(str(Path(__file__).parents[1] / "tests" / "privacy" / "dp"))
from trainers import HandWritten

REPEATS, FEW = 40, 5
SINGLE = WhiteBox(canaries=1, runs=60, companions=7, spare=2000)
MISSING = WhiteBox(canaries=1, runs=60, companions=7, spare=2000, remove=True)
Trainer = Callable[[nn.Module, Split, int], Any]


def library(rate: float, noise: float, steps: int) -> Trainer:
    """Return a trainer by make_private."""

    def train(model: nn.Module, data: Split, seed: int) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        private = make_private(
            model, optimizer, data, batch_size=round(rate * len(data)), noise_multiplier=noise, options=PrivateOptions(seed=seed)
        )
        for x, y in private.batches(steps=steps):
            private.step(lambda net, x, y: functional.cross_entropy(net(x), y), x, y)
        return private

    return train


CASES: dict[str, tuple[Trainer, WhiteBox, int]] = {
    "honest, by hand, all records in 4 steps, σ 2": (HandWritten(), WhiteBox(500, 4), REPEATS),
    "honest, make_private, all records in 4 steps, σ 2": (library(1.0, 2.0, 4), WhiteBox(500, 4), REPEATS),
    "honest, make_private, Poisson .2, 20 steps, σ 1": (library(0.2, 1.0, 20), WhiteBox(500, 4), REPEATS),
    "honest, by hand, beside 7 records against each canary": (HandWritten(), WhiteBox(200, 4, companions=7), REPEATS),
    "honest, by hand, one canary in 60 runs": (HandWritten(steps=3), SINGLE, FEW),
    "no noise": (HandWritten("no noise"), WhiteBox(500, 4), FEW),
    "noise for a clip of C / 10": (HandWritten("wrong clip"), WhiteBox(500, 4), FEW),
    "8 examples clipped together": (HandWritten("groups of 8"), WhiteBox(200, 4, companions=7), FEW),
    "adaptive quantile not accounted": (HandWritten("quantile", steps=3), SINGLE, FEW),
    "divided by the batch that came": (HandWritten("divided by what came", steps=3), MISSING, FEW),
    "fixed batches accounted as Poisson": (
        HandWritten("fixed batches", noise=0.8, steps=50, rate=0.02), WhiteBox(500, 4), FEW,
    ),
}


def main() -> None:
    """Audit every trainer, write the table."""
    torch.set_num_threads(1)
    rows, content = [], {}
    for name, (train, design, repeats) in CASES.items():
        found = [audit_training(train, design=design, seed=seed) for seed in range(repeats)]
        above = sum(one.violated for one in found)
        audited, claimed = [one.audited for one in found], found[0].claimed
        ends = clopper_pearson(above, repeats)
        signals = ", ".join(sorted({one.signal for one in found}))
        rows.append([
            name, f"{claimed:.2f}", f"{statistics.median(audited):.2f}", f"{min(audited):.2f} to {max(audited):.2f}",
            f"{statistics.median(audited) / claimed:.2f}", f"{above} of {repeats} [{ends.low:.2f} to {ends.high:.2f}]",
            str(found[0].n), signals,
        ])
        content[name] = {"claimed": claimed, "audited": audited, "above": above, "repeats": repeats, "n": found[0].n}
        print(rows[-1], flush=True)
    save(
        "dp_audit", "ε claimed and ε audited, white box, δ = 1e-5, bounds at 95 %", content,
        ["trainer", "claimed", "audited, median", "least to greatest", "share", "above the claim", "trials", "signal"], rows,
        [
            "The adversary chooses the canaries' gradients and sees the gradient of every step. The bound assumes that errors",
            "trade as under Gaussian noise. Where batches are sampled, the claim (PLD) has a heavier tail than that, and the",
            "share is smaller. Made by `benchmarks/dp_audit.py`.",
        ],
    )


if __name__ == "__main__":
    main()
