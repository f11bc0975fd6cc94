"""Metrics of corruptions: accuracy by kind and severity, corruption error with and without a baseline, flips of the answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core import progress, rng
from hauberk.core.card import registry
from hauberk.core.errors import DataError, UsageError
from hauberk.core.finding import Interval
from hauberk.core.stats import Floats, bootstrap, mean_interval, wilson
from hauberk.core.target import Target
from hauberk.core.threat import Bounds
from hauberk.robustness import natural
from hauberk.robustness.evaluate.figure import NOTHING, Figure, share

SEVERITIES = (1, 2, 3, 4, 5)
FEW = 30  # samples below which a bootstrap is not to be trusted
Corrupt = Callable[[str, int], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class CorruptedRun:
    """What a model answered on samples and on their corrupted forms.

    Arguments:
        names: of the corruptions.
        y: true labels, shape (n,).
        answers: labels answered, shape (corruptions, 1 + severities, n); severity 0, the clean samples, first.
    """

    names: Sequence[str]
    y: Tensor
    answers: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.answers.shape)
        if self.answers.ndim != 3 or shape[0] != len(self.names) or shape[2] != len(self.y) or shape[1] < 2 or not shape[0]:
            raise DataError(
                f"answers have shape {shape} for {len(self.names)} names and {len(self.y)} labels",
                want="(corruptions, 1 + severities, n), one severity at least",
            )

    @property
    def right(self) -> Tensor:
        """Which answers are right, shape (corruptions, 1 + severities, n), bool."""
        return self.answers == self.y.to(self.answers.device)


@dataclasses.dataclass(frozen=True, eq=False)
class BaselineErrors:
    """The published errors of a baseline, such as AlexNet's on ImageNet-C, as shares.

    Arguments:
        errors: by corruption and severity, shape (corruptions, severities).
        clean: its error on clean samples.
    """

    errors: Tensor
    clean: float


@dataclasses.dataclass(frozen=True)
class CorruptionMetrics:
    """The metrics of Hendrycks and Dietterich 2019, each with n and a 95 % interval.

    Arguments:
        names: of the corruptions.
        clean: accuracy on clean samples.
        cells: accuracy by corruption and severity, Wilson's intervals.
        each: accuracy by corruption, over its severities.
        mean: accuracy over all corruptions and severities.
        mce: mean corruption error. With a baseline, the mean over corruptions of the error summed over severities divided by the
            baseline's: 1 is as good as the baseline (papers print it times 100). Without one it is **not normalised**: the plain
            mean error, 1 - mean.
        relative_mce: the same of what corruption adds to the clean error. Not measured where it adds nothing to the baseline's.
        normalised: whether mce and relative_mce are relative to a baseline.
        flips: by corruption, the share of samples whose answer changes between severities 0 and 1, 1 and 2, and so on.
        flip_rate: its mean over all corruptions and neighbouring severities.
    """

    names: tuple[str, ...]
    clean: Figure
    cells: tuple[tuple[Figure, ...], ...]
    each: tuple[Figure, ...]
    mean: Figure
    mce: Figure
    relative_mce: Figure
    normalised: bool
    flips: tuple[tuple[Figure, ...], ...]
    flip_rate: Figure

    def rows(self) -> list[tuple[str, str, int]]:
        """Return name, value and n of each overall metric, as text."""
        against = "relative to the baseline" if self.normalised else "not normalised: no baseline was given"
        named = (
            ("clean accuracy", self.clean), ("mean accuracy under corruption", self.mean),
            (f"mean corruption error, mCE ({against})", self.mce), (f"relative mCE ({against})", self.relative_mce),
            ("answers that flip between neighbouring severities", self.flip_rate),
        )
        return [(name, one.words(), one.n) for name, one in named]


def corrupted_run(
    model: Target | nn.Module, x: Tensor, y: Tensor, *, names: Sequence[str] = (), bounds: Bounds = (0.0, 1.0), seed: int = 0,
) -> CorruptedRun:
    """Ask a model about images and about every corruption of them at the severities 1 to 5.

    Arguments:
        model: with LABEL access.
        x: clean images, shape (n, channels, height, width).
        y: true labels, shape (n,).
        names: of corruptions; empty takes all that are registered.
        bounds: lowest and highest input.
        seed: of the corruptions; each draws the same at every severity: a picture only gets worse.

    Returns:
        The answers; n (1 + 5 corruptions) queries are spent.

    Raises:
        UsageError: for an unknown name.
        DataError: where x and y differ in number, or x is no batch of images inside the bounds.
    """
    assert natural  # its import fills the registry
    known = [registry.get(name, "corruption") for name in names] or list(registry.cards("corruption"))
    chosen = tuple(card.name for card in known)
    return answers_under(model, x, y, chosen, lambda name, severity: corrupted_images(
        name, severity, x, bounds=bounds, seed=seed))


def answers_under(
    model: Target | nn.Module, x: Tensor, y: Tensor, names: Sequence[str], corrupt: Corrupt
) -> CorruptedRun:
    """Ask a model about samples and about `corrupt(name, severity)` of them for all names and severities; the loop of all kinds.

    Arguments:
        model: with LABEL access.
        x: clean samples, shape (n, ...).
        y: true labels, shape (n,).
        names: of the corruptions.
        corrupt: returns x corrupted, shape (n, ...).

    Returns:
        The answers.

    Raises:
        DataError: where x and y differ in number.
    """
    if len(x) != len(y):
        raise DataError(f"there are {len(x)} samples and {len(y)} labels", want="one label per sample")
    target = model if isinstance(model, Target) else Target(model)
    clean = target.labels(x)
    answers = clean.expand(len(names), len(SEVERITIES) + 1, len(x)).clone()
    for row, name in enumerate(progress.track(names, "corruptions")):
        for severity in SEVERITIES:
            answers[row, severity] = target.labels(corrupt(name, severity))
    return CorruptedRun(tuple(names), y, answers)


def corrupted_images(name: str, severity: int, x: Tensor, *, bounds: Bounds = (0.0, 1.0), seed: int = 0) -> Tensor:
    """Return the images that `corrupted_run` showed to the model, shape of x, by the name of the corruption and the severity."""
    card = registry.get(name, "corruption")
    corrupted: Tensor = card.function(x, severity, generator=rng.generator(seed, "corruption", name), bounds=bounds)
    return corrupted


def corruption_metrics(
    run: CorruptedRun, *, baseline: CorruptedRun | BaselineErrors | None = None, seed: int = 0
) -> CorruptionMetrics:
    """Return the metrics of a run; relative to a baseline model where one is given.

    Arguments:
        run: from `corrupted_run`.
        baseline: a run of the baseline model on the same samples, whose luck then counts in the intervals; or its published
            errors, taken as exact.
        seed: of the bootstrap.

    Returns:
        The metrics.

    Raises:
        DataError: for a baseline of other corruptions, severities or samples.
        UsageError: for published errors that are not shares.

    Hendrycks and Dietterich 2019, arXiv:1903.12261; without a baseline the plain mean, as RobustBench reports it.
    """
    if isinstance(baseline, BaselineErrors):
        _refuse_errors(baseline, run)
    elif baseline is not None and not _alike(baseline, run):
        raise DataError("the baseline was run on other corruptions, severities or samples", want="the same, in the same order")
    right = run.right.cpu()
    corrupted, n = right[:, 1:].double(), right.shape[2]  # (corruptions, severities, n)
    changed = run.answers[:, 1:] != run.answers[:, :-1]
    over_all = corrupted.mean((0, 1)).numpy()  # (n,)
    mce, relative = _errors(run, baseline, seed) if n else (NOTHING, NOTHING)
    return CorruptionMetrics(
        tuple(run.names), share(right[0, 0]), tuple(tuple(share(cell) for cell in row) for row in right[:, 1:]),
        tuple(_figure(row.mean(0).numpy(), seed, name) for row, name in zip(corrupted, run.names, strict=True)),
        _figure(over_all, seed, "mean"), mce, relative, baseline is not None,
        tuple(tuple(share(cell) for cell in row) for row in changed.cpu()),
        _figure(changed.double().mean((0, 1)).cpu().numpy(), seed, "flips"),
    )


def mean_band(values: Floats, seed: int, *names: object) -> Interval:
    """Return the interval of a mean of values in [0, 1], one per sample.

    The bootstrap of a few samples is far too narrow, and that of samples all alike has no width: then it is the hull of Student's
    interval and of Wilson's, which no law on [0, 1] with that mean asks to be wider.
    """
    n, total = len(values), float(values.sum())
    if n >= FEW and values.std() > 0:
        return bootstrap(values, lambda rows: float(rows.mean()), rng=rng.numpy_generator(seed, *names))
    student = mean_interval(values)
    low, high = wilson(math.floor(total + 1e-9), n).low, wilson(math.ceil(total - 1e-9), n).high
    return Interval(max(0.0, min(low, student.low)), min(1.0, max(high, student.high)), "student and wilson", 0.95)


def _figure(values: Floats, seed: int, *names: object) -> Figure:
    return Figure(float(values.mean()), len(values), mean_band(values, seed, *names)) if len(values) else NOTHING


def _errors(run: CorruptedRun, baseline: CorruptedRun | BaselineErrors | None, seed: int) -> tuple[Figure, Figure]:
    """Return mCE and relative mCE: functions of means over samples, so that resampling rows gives their intervals."""
    own, n = _per_sample(run), len(run.y)
    kinds = len(run.names)
    if isinstance(baseline, CorruptedRun):
        table = np.concatenate([own, _per_sample(baseline)], 1)  # (n, 2 (corruptions + 1))
        fixed = None
    else:
        table = own
        fixed = np.ones(kinds + 1)
        if baseline is not None:
            fixed = np.append(baseline.errors.double().mean(1).numpy(), baseline.clean)

    def ratios(rows: Floats, relative: bool) -> float:
        means = rows.mean(0)
        error, clean = means[:kinds], means[kinds]
        if baseline is None:
            return float((error - clean if relative else error).mean())
        base = fixed if fixed is not None else means[kinds + 1 :]
        below = base[:kinds] - base[kinds] if relative else base[:kinds]
        if (below <= 1e-7).any():  # nothing, but for the rounding of errors given in single precision
            return math.nan
        return float(((error - clean if relative else error) / below).mean())

    def figure(relative: bool) -> Figure:
        value = ratios(table, relative)
        if math.isnan(value):
            return NOTHING
        name = "relative mCE" if relative else "mCE"
        if baseline is None and not relative:
            return _figure(own[:, :kinds].mean(1), seed, name)
        if n < FEW:  # a ratio of few samples has no interval to be trusted
            return Figure(value, n)
        return Figure(value, n, bootstrap(table, lambda rows: ratios(rows, relative), rng=rng.numpy_generator(seed, name)))

    return figure(False), figure(True)


def _per_sample(run: CorruptedRun) -> Floats:
    """Return by sample its error over the severities of each corruption and, last, on the clean sample: (n, corruptions + 1)."""
    wrong = (~run.right).double().cpu()
    rows: Floats = torch.cat([wrong[:, 1:].mean(1), wrong[:1, 0]]).T.numpy()
    return rows


def _alike(a: CorruptedRun, b: CorruptedRun) -> bool:
    return tuple(a.names) == tuple(b.names) and a.answers.shape == b.answers.shape and bool((a.y.cpu() == b.y.cpu()).all())


def _refuse_errors(baseline: BaselineErrors, run: CorruptedRun) -> None:
    wanted = (len(run.names), run.answers.shape[1] - 1)
    if tuple(baseline.errors.shape) != wanted:
        found = f"the baseline's errors have shape {tuple(baseline.errors.shape)}"
        raise DataError(found, want=f"(corruptions, severities) = {wanted}")
    if not bool(((baseline.errors >= 0) & (baseline.errors <= 1)).all()) or not 0 <= baseline.clean <= 1:
        raise UsageError("the baseline's errors are not all in [0, 1]", want="shares", fix="Divide per cent by 100")
