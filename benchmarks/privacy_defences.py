"""Defences against membership inference on Location-30, judged by attacks that know them, and by what they cost.

Needs location30.npz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from harness import data_folder, save
from hauberk import Schedule, Split, Target, fit
from hauberk.core.rng import generator, isolated
from hauberk.core.train import Loss, cross_entropy
from hauberk.privacy.defence import (
    dmp,
    judge_defence,
    label_smoothing,
    labels_alone,
    memguard,
    mid,
    rounded,
    selena,
    top_scores,
    with_bottleneck,
)
from hauberk.privacy.defence.judge import Row

MEMBERS, REFERENCE = 2000, 1000


def build() -> nn.Sequential:
    """Return the untrained net of the protocol."""
    return nn.Sequential(nn.Linear(446, 256), nn.ReLU(), nn.Linear(256, 30))


def trained(model: nn.Module, split: Split, loss: Loss = cross_entropy, epochs: int = 40) -> nn.Module:
    """Train by the protocol: Adam at 1e-3, 40 epochs, batches of 64."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    fit(model, split, loss=loss, optimizer=optimizer, schedule=Schedule(epochs=epochs, batch_size=64))
    return model


def main() -> None:
    """Train, defend, judge, write the table."""
    torch.set_num_threads(1)
    place = data_folder("location30.npz") / "location30.npz"
    held = np.load(place)
    x, y = torch.tensor(held["x"], dtype=torch.float32), torch.tensor(held["y"]).long()
    order = torch.randperm(len(x), generator=generator(0, "location"))
    parts = order.split([MEMBERS, REFERENCE, len(x) - MEMBERS - REFERENCE])
    members, reference, others = ((x[one], y[one]) for one in parts)
    split = Split(*members)
    with isolated(0):
        plain = trained(build(), split)

    def guarded(**options: object) -> Target:
        # The owner prepares it on members, and on reference records, that the judge's adversary does not see.
        return memguard(plain, members, reference, steps=60, key=b"benchmark", **options)  # type: ignore[arg-type]

    def fresh(make: Callable[[], nn.Module]) -> nn.Module:
        with isolated(0):
            return make()

    def partial(model: nn.Module, part: Split) -> None:
        trained(model, part)

    defences: dict[str, Callable[[], Target | nn.Module]] = {
        "none": lambda: plain,
        "labels alone": lambda: labels_alone(plain),
        "rounded to 1 digit": lambda: rounded(plain, digits=1),
        "top score alone": lambda: top_scores(plain, k=1),
        "MemGuard, distortion .5 expected": lambda: guarded(distortion=0.5),
        "MemGuard, distortion 1 each": lambda: guarded(distortion=1.0, bound="each"),
        "label smoothing .2": lambda: fresh(lambda: trained(build(), split, label_smoothing(amount=0.2))),
        "label smoothing -.05": lambda: fresh(lambda: trained(build(), split, label_smoothing(amount=-0.05))),
        "MID, beta .01": lambda: fresh(lambda: trained(with_bottleneck(build(), width=32), split, mid(beta=0.01))),
        "MID, beta .1": lambda: fresh(lambda: trained(with_bottleneck(build(), width=32), split, mid(beta=0.1))),
        "DMP, 1,000 references": lambda: fresh(
            lambda: dmp(plain, build(), reference[0], schedule=Schedule(epochs=40, batch_size=64))
        ),
        "SELENA, 10 models, 3 outside": lambda: selena(
            build, split, models=10, outside=3, train=partial, schedule=Schedule(epochs=40, batch_size=64)
        ).student,
        "stopped after 8 epochs": lambda: fresh(lambda: trained(build(), split, epochs=8)),
    }
    rows, content = [], {}
    for name, make in defences.items():
        began = time.process_time()
        defended = make()
        spent = time.process_time() - began
        # MemGuard searches for every question it is asked, and keeps labels: what labels give away stands in the second row.
        verdict = judge_defence(plain, defended, members, others, copies=0 if "MemGuard" in name else 8)
        by_name = {row.attack: row for row in verdict.rows}
        usual = max((row for row in verdict.rows if not row.adaptive), key=_area)
        informed = max((row for row in verdict.rows if row.adaptive), key=_area)
        lost = verdict.loss
        rows.append([
            name, _told(usual), _told(informed), f"{verdict.defended.accuracy:.1%}",
            f"{100 * (verdict.plain.accuracy - verdict.defended.accuracy):+.1f} "
            f"[{100 * lost.low:+.1f} to {100 * lost.high:+.1f}]",
            "–" if verdict.defended.calibration is None else f"{verdict.defended.calibration:.3f}", f"{spent:.1f}",
        ])
        content[name] = {
            attack: None if row.defended is None else {
                "auc": row.defended.roc.auc, "tpr at .1%": row.defended.roc.tpr_at(1e-3),
                "tpr at 1%": row.defended.roc.tpr_at(1e-2),
            } for attack, row in by_name.items()
        }
        print(rows[-1], flush=True)
    save(
        "privacy_defences", "Defences against membership inference, judged by attacks that know them", content,
        ["defence", "best usual attack", "best attack that knows the defence", "accuracy", "accuracy given up, points",
         "calibration error", "CPU s to make"], rows,
        [
            f"Location-30, MLP 446-256-30, {MEMBERS:,} members; each cell: attack, AUC [95 %], true positives at 1 % and 0.1 %",
            "false positives. The best is that of the largest area; half of either side is known to the adversary, the other",
            "half judged. A defence that moves the first of the two columns alone hides the leak and does not stop it. Shadow",
            "models (LiRA) are not among these attacks and see more. MemGuard was not asked for the labels of noisy copies: it",
            "keeps labels, so that these give away what the row 'labels alone' says. Made by `benchmarks/privacy_defences.py`.",
        ],
    )


def _area(row: Row) -> float:
    return -1.0 if row.defended is None else row.defended.roc.auc


def _told(row: Row) -> str:
    if row.defended is None:
        return "refused"
    found = row.defended
    span = found.auc_interval
    return (
        f"{row.attack}: {found.roc.auc:.3f} [{span.low:.3f} to {span.high:.3f}]; {found.roc.tpr_at(1e-2):.1%}, "
        f"{found.roc.tpr_at(1e-3):.1%}"
    )


if __name__ == "__main__":
    main()
