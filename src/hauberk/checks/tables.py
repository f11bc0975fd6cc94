"""Accidents of tables: gaps, wrong units, columns out of place, which no adversary has to plan."""

from __future__ import annotations

from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.checks.natural import TAGS, evidence_of, mean_accuracy
from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.card import Card, registry
from hauberk.core.finding import Advice, Finding
from hauberk.core.kinds import check
from hauberk.core.target import Target
from hauberk.robustness.evaluate import CorruptedRun, CorruptionMetrics, corruption_metrics
from hauberk.robustness.evaluate.corruption_metrics import answers_under
from hauberk.robustness.inputs import Columns

LEARNED = 10_000  # clean rows that the columns are learned from


@check(
    "robustness/table-corruptions", pillar="robustness", unit="accuracy", access=Access.LABEL, warn=0.8, fail=0.5, tags=TAGS,
    question="How often is the model right on rows with gaps, wrong units, columns out of place or frozen sensors?",
    paper="Schelter et al. 2021 (Jenga, EDBT 2021)",
    advice=(
        Advice("Refuse rows with gaps, or with values out of the range of their column, at the door", "", "AML.M0015"),
        Advice("Train on rows with gaps, noise and wrong units, and measure on accidents left out of training", "", "AML.M0003"),
    ),
)
def table_corruptions(context: Context) -> Finding:
    """Mean accuracy over the accidents of tables and the severities 1 to 5; the columns are learned from clean rows."""
    context.need_classes()
    if context.data.modality != "tabular":
        raise NotRun(f"the data is {context.data.modality}, not a table")
    x, y = context.sample()
    split = context.data.train if context.data.train is not None else context.data.test
    seed, structure = context.seed, context.settings.threats[0].structure
    columns = Columns.of(
        split.sample(LEARNED, seed, "columns")[0], bounds=context.data.bounds, structure=structure, seed=seed,
    )
    cards = {card.name: card for card in registry.cards("table-corruption")}

    def make(target: Target) -> tuple[CorruptedRun, CorruptionMetrics]:
        run = answers_under(target, x, y, list(cards), lambda name, severity: _made(cards[name], x, severity, columns, seed))
        return run, corruption_metrics(run, seed=seed)

    _, metrics = context.shared(("table corruptions", context.settings.preset), make)
    if context.data.train is None:
        context.note("no training data was given: what columns are like was learned from the test rows")
    context.note("units slip on values as the model sees them: of scaled features, 0 has to stand for nothing")
    value, clean = mean_accuracy(context, metrics), metrics.clean.value or 0.0
    least = min(zip(metrics.each, metrics.names, strict=True), key=lambda pair: pair[0].value or 0.0)
    threat = f"{len(cards)} accidents of tables, severities 1 to 5"
    return context.finding(
        f"{value:.1%} of answers are right over {len(cards)} accidents at 5 severities, {clean:.1%} on clean rows; "
        f"{least[1]} costs most and leaves {least[0].value or 0.0:.1%}",
        value=value, n=metrics.mean.n, interval=metrics.mean.interval, threat=threat, evidence=evidence_of(metrics),
    )


def _made(card: Card, x: Tensor, severity: int, columns: Columns, seed: int) -> Tensor:
    # The same draws at every severity: one row only gets worse.
    made: Tensor = card.function(x, severity, columns, generator=rng.generator(seed, "table corruption", card.name))
    return made
