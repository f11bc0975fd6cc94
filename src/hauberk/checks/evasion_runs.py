"""Attacks that several checks rest on: each is run once per assessment, and every finding that uses it states its price."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Ledger
from hauberk.core.card import registry
from hauberk.core.finding import Advice, Finding, Gallery, Table
from hauberk.core.picture import picture
from hauberk.core.rng import derive_seed, generator
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat

TRAIN_ON_EXAMPLES = Advice(
    "Train on adversarial examples",
    "from hauberk.robustness.defend import adversarial; hauberk.fit(model, data.train, loss=adversarial(threat))", "AML.M0003",
)
RESTRICT_QUERIES = Advice("Limit how many queries one client may send, and watch for many near-equal ones", "", "AML.M0004")
COLUMNS = (
    "attack", "accuracy left", "success among correct", "median distance", "queries per sample", "gradients per sample",
)


@dataclasses.dataclass(frozen=True)
class AttackRun:
    """What one attack did to the evaluation sample.

    Arguments:
        name: of the attack.
        threat: it ran under; for a targeted one `y` holds the labels to reach.
        x, z: clean and adversarial inputs, shape (n, ...).
        y: true labels, shape (n,).
        clean: which samples are right undisturbed, shape (n,), bool.
        held: which are right undisturbed *and* under the attack, shape (n,), bool: clean mistakes count as mistakes.
        labels: what the target says to z, shape (n,).
        distance: of z from x in the threat's norm, shape (n,), float64.
        cost: what was spent.
    """

    name: str
    threat: Threat
    x: Tensor
    z: Tensor
    y: Tensor
    clean: Tensor
    held: Tensor
    labels: Tensor
    distance: Tensor
    cost: Ledger

    @property
    def broken(self) -> Tensor:
        """Which samples were right and are so no more, shape (n,), bool."""
        return self.clean & ~self.held

    def row(self) -> tuple[Any, ...]:
        """The run as a row under `COLUMNS`."""
        n, right, broken = len(self.y), int(self.clean.sum()), int(self.broken.sum())
        median = f"{float(self.distance[self.broken].median()):.4g}" if broken else "–"
        return (
            self.name, f"{int(self.held.sum()) / max(n, 1):.1%}", f"{broken / max(right, 1):.1%}", median,
            round(self.cost.queries / max(n, 1), 1), round(self.cost.gradients / max(n, 1), 1),
        )

    def table(self) -> Table:
        """The run as a table of one row."""
        return Table(f"{self.name}, {self.threat.describe()}, n = {len(self.y)}", COLUMNS, [self.row()])

    def gallery(self, context: Context, pairs: int = 2) -> list[Gallery]:
        """Clean images beside their adversarial twins; empty where samples are not images or none was broken."""
        if context.data.modality != "image":
            return []
        names = [*context.data.class_names]
        pictures = []
        for index in self.broken.nonzero()[:pairs, 0].tolist():
            told = (int(self.y[index]), int(self.labels[index]))
            true, seen = ("no label" if at < 0 else names[at] if at < len(names) else str(at) for at in told)
            bounds = self.threat.bounds or (0.0, 1.0)
            pictures += [
                picture(self.x[index], f"clean: {true}", bounds=bounds),
                picture(self.z[index], f"seen as {seen}, moved {float(self.distance[index]):.3g}", bounds=bounds),
            ]
        return [Gallery(f"Clean and adversarial, {self.name}", pictures)] if pictures else []


def clean_labels(context: Context) -> Tensor:
    """Return what the target says to the evaluation sample, shape (n,); asked once per assessment."""
    return context.shared("evaluation labels", lambda target: target.labels(context.sample()[0]))


def untargeted(context: Context, norm: str) -> Threat:
    """Return the untargeted threat in that norm."""
    return dataclasses.replace(context.threat_in(norm), goal=Goal.UNTARGETED)


def main_norm(context: Context, norms: Sequence[str]) -> str:
    """Return the norm of the main threat where it is one of `norms`, else the first of them."""
    return context.threat.norm if context.threat.norm in norms else norms[0]


def other_labels(context: Context, y: Tensor) -> Tensor:
    """Return one random label per sample that is not its own, shape (n,)."""
    classes = context.need_classes()
    if classes < 2:
        raise NotRun("there is one class only, so no other label to reach")
    shift = torch.randint(1, classes, y.shape, generator=generator(context.seed, "other labels"))
    return (y + shift.to(y.device)) % classes


def evasion_run(context: Context, name: str, norm: str, *, count: int | None = None, **options: Any) -> AttackRun:
    """Return the run of an attack on the evaluation sample; the same call from another check costs nothing again.

    Arguments:
        context: of the check that asks.
        name: of the attack.
        norm: of the threat; its radius is the one that was named, or derived from the main threat.
        count: only the first so many samples.
        options: of the attack; `targeted=True` aims at a random other label.
    """
    context.need_classes()
    seed = derive_seed(context.seed, "evasion", name)
    aimed, given = bool(options.pop("targeted", False)), dict(options)
    threat = untargeted(context, norm)

    def make(target: Target) -> AttackRun:
        x, y = context.sample()
        x, y, threat_here = x[:count], y[:count], threat.targeted() if aimed else threat
        goals = other_labels(context, y) if aimed else y
        card, view = registry.get(name, "attack"), target.fresh()
        if "seed" in card.options:
            given["seed"] = seed
        z = card.function(view, x, goals, threat_here, **given)
        cost = view.ledger.copy()
        labels = target.labels(z)
        clean = clean_labels(context)[: len(y)] == y
        held = clean & ((labels != goals) if aimed else (labels == y))
        return AttackRun(name, threat_here, x, z, y, clean, held, labels, threat.distance(z, x), cost)

    key = ("evasion", name, norm, count, aimed, tuple(sorted((key, str(value)) for key, value in options.items())))
    clean_labels(context)  # outside of `make`, so that its price is not counted twice
    return context.shared(key, make)


def answer(context: Context, run: AttackRun, pairs: int = 0) -> Finding:
    """Return the finding "accuracy left" of a run, with its table and pictures."""
    figure = context.rate(run.held)
    wrong = int((~run.clean).sum())
    if wrong:
        context.note(f"{wrong} of {len(run.y)} samples are misclassified undisturbed and count as mistakes")
    summary = (
        f"{figure['value']:.1%} of {figure['n']} samples are still classified correctly; "
        f"{int(run.broken.sum())} of {int(run.clean.sum())} that were right are broken"
    )
    return context.finding(summary, threat=run.threat, evidence=[run.table(), *run.gallery(context, pairs)], **figure)
