"""Defences against membership inference on Location-30, judged by attacks that know them, and by what they cost.

The strongest of them train reference models of their own *under the defence*: its whole procedure, four times.
Some 6 CPU-minutes.
Needs location30.npz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout).
"""

from __future__ import annotations

import dataclasses
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
    Repeated,
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
from hauberk.privacy.defence.outputs import Protect
from hauberk.privacy.defence.verdict import Row
from hauberk.privacy.membership import train_references

MEMBERS, REFERENCE, COUNT = 2000, 1000, 4
PLAN = Schedule(epochs=40, batch_size=64)
Training = Callable[[Split, int], nn.Module]


def build() -> nn.Sequential:
    """Return the untrained net of the protocol."""
    return nn.Sequential(nn.Linear(446, 256), nn.ReLU(), nn.Linear(256, 30))


def trained(model: nn.Module, split: Split, seed: int = 0, loss: Loss = cross_entropy, epochs: int = 40) -> nn.Module:
    """Train by the protocol: Adam at 1e-3, 40 epochs, batches of 64."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    fit(model, split, loss=loss, optimizer=optimizer, schedule=dataclasses.replace(PLAN, epochs=epochs, seed=seed))
    return model


def with_loss(loss: Loss) -> Training:
    """Return the training with another loss."""
    return lambda split, seed: trained(build(), split, seed, loss)


def narrowed(beta: float) -> Training:
    """Return the training of MID."""
    return lambda split, seed: trained(with_bottleneck(build(), width=32, seed=seed), split, seed, mid(beta=beta))


def distilled(reference: torch.Tensor) -> Training:
    """Return the whole procedure of DMP: a teacher of the private records, and a student of its answers to others."""
    return lambda split, seed: dmp(
        trained(build(), split, seed), build(), reference, schedule=dataclasses.replace(PLAN, seed=seed)
    )


def split_and_distilled(split: Split, seed: int) -> nn.Module:
    """Return the student of SELENA, with 10 partial models of which 3 leave out each record."""
    plan = dataclasses.replace(PLAN, seed=seed)
    train = lambda model, part: trained(model, part, seed)  # noqa: E731
    return selena(build, split, models=10, outside=3, train=train, schedule=plan, seed=seed).student


def main() -> None:
    """Train, defend, judge, write the table."""
    torch.set_num_threads(1)
    held = np.load(data_folder("location30.npz") / "location30.npz")
    x, y = torch.tensor(held["x"], dtype=torch.float32), torch.tensor(held["y"]).long()
    order = torch.randperm(len(x), generator=generator(0, "location"))
    parts = order.split([MEMBERS, REFERENCE, len(x) - MEMBERS - REFERENCE])
    members, reference, others = ((x[one], y[one]) for one in parts)
    with isolated(0):
        plain = trained(build(), Split(*members))
    pool = torch.cat([members[0], others[0]]), torch.cat([members[1], others[1]])
    alike = train_references(build(), pool, count=COUNT, schedule=PLAN)

    def guard(target: Target | nn.Module, distortion: float, bound: str, inside: object, outside: object) -> Target:
        return memguard(target, inside, outside, distortion=distortion, bound=bound, steps=60)  # type: ignore[arg-type]

    # What changes answers: as the owner puts it up, who prepares MemGuard on records that are not judged, and as others do.
    answers: dict[str, tuple[Callable[[], Target | nn.Module], Protect]] = {
        "none": (lambda: plain, lambda target, *_: target),
        "labels alone": (lambda: labels_alone(plain), lambda target, *_: labels_alone(target)),
        "rounded to 1 digit": (lambda: rounded(plain), lambda target, *_: rounded(target)),
        "top score alone": (lambda: top_scores(plain), lambda target, *_: top_scores(target)),
        "MemGuard, distortion .5 expected": (
            lambda: guard(plain, 0.5, "expected", members, reference),
            lambda target, *sides: guard(target, 0.5, "expected", *sides),
        ),
        "MemGuard, distortion 1 each": (
            lambda: guard(plain, 1.0, "each", members, reference), lambda target, *sides: guard(target, 1.0, "each", *sides),
        ),
    }
    trainings: dict[str, Training] = {
        "label smoothing .2": with_loss(label_smoothing(amount=0.2)),
        "label smoothing -.05": with_loss(label_smoothing(amount=-0.05)),
        "MID, beta .01": narrowed(0.01),
        "MID, beta .1": narrowed(0.1),
        "DMP, 1,000 references": distilled(reference[0]),
        "SELENA, 10 models, 3 outside": split_and_distilled,
        "stopped after 8 epochs": lambda split, seed: trained(build(), split, seed, epochs=8),
    }
    rows, content = [], {}
    for name in (*answers, *trainings):
        began = time.process_time()
        if name in answers:
            make, protect = answers[name]
            defended, repeated = make(), Repeated(alike, protect)
        else:
            with isolated(0):
                defended = trainings[name](Split(*members), 0)
            repeated = Repeated(trainings[name], plain=alike, count=COUNT)
        spent = time.process_time() - began
        verdict = judge_defence(plain, defended, members, others, references=repeated)
        told = [best(kind, verdict.rows) for kind in ("usual", "knows", "references")]
        span, lost = verdict.change.interval, verdict.loss
        helps = {True: "helps", False: "harms" if span.low > 0 else "not shown", None: "not run"}[verdict.helps]
        rows.append([
            name, *told, f"{100 * verdict.change.value:+.1f} [{100 * span.low:+.1f} to {100 * span.high:+.1f}]: {helps}",
            f"{verdict.defended.accuracy:.1%} [{verdict.defended.interval.low:.1%} to {verdict.defended.interval.high:.1%}]",
            f"{100 * (verdict.defended.accuracy - verdict.plain.accuracy):+.1f} "
            f"[{-100 * lost.high:+.1f} to {-100 * lost.low:+.1f}]",
            "–" if verdict.defended.calibration is None else f"{verdict.defended.calibration:.3f}", f"{spent:.1f}",
        ])
        content[name] = {
            "summary": verdict.summary, "notes": verdict.notes,
            "change": dataclasses.asdict(verdict.change),
            "attacks": {row.attack: None if row.defended is None else {
                "auc": row.defended.roc.auc, "tpr at .1%": row.defended.roc.tpr_at(1e-3),
                "tpr at 1%": row.defended.roc.tpr_at(1e-2),
            } for row in verdict.rows},
            "cpu seconds, with the judging": time.process_time() - began,
        }
        print(rows[-1], flush=True)
    print(f"{time.process_time():.0f} CPU-seconds in all")
    save(
        "privacy_defences", "Defences against membership inference, judged by attacks that know them", content,
        ["defence", "best usual attack", "best that knows the defence, without models of its own",
         "best with 4 reference models under the defence", "change of the best at 1 % false alarms, points", "accuracy",
         "change, points", "calibration error", "CPU s to make"], rows,
        [
            f"Location-30, MLP 446-256-30, {MEMBERS:,} members; each cell: attack: true positives at 0.1 % and 1 % false",
            "positives; AUC. The best tells the most at 0.1 %, of equals the one of the largest area. Half of either side is",
            "known to the adversary, the other half judged: 0.1 % is one false alarm. Change: the best of all attacks with",
            "the defence less the best of all without it, 95 %, records resampled and the best chosen anew each time; 'helps'",
            "where it is surely below 0. Accuracy: 95 %, its change paired over records. Reference models repeat the whole",
            "procedure, with keys and partial models of their own. Made by `benchmarks/privacy_defences.py`.",
        ],
    )


def best(kind: str, rows: tuple[Row, ...]) -> str:
    """Return the best attack of a kind against the defended model."""
    def of(row: Row) -> str:
        return "usual" if not row.adaptive else "references" if row.attack.endswith("references") else "knows"

    found = [row for row in rows if of(row) == kind and row.defended is not None]
    if not found:
        return "refused"
    row = max(found, key=lambda one: (one.defended.tpr, one.defended.roc.auc))  # type: ignore[union-attr]
    assert row.defended is not None
    curve = row.defended.roc
    return f"{row.attack.removesuffix(', references')}: {curve.tpr_at(1e-3):.1%}, {curve.tpr_at(1e-2):.1%}; {curve.auc:.3f}"


if __name__ == "__main__":
    main()
