"""audit_training: the ε that a trainer claims beside the ε that an attack on it shows."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hauberk.core.data import Split
from hauberk.core.errors import DataError, UsageError, nearest
from hauberk.core.finding import Interval
from hauberk.core.rng import derive_seed, generator, isolated, numpy_generator
from hauberk.privacy.dp.audit.canaries import BlackBox, ProbeModel, WhiteBox, gradient_canaries, input_canaries, rows_of
from hauberk.privacy.dp.audit.clopper_pearson import check, epsilon_clopper_pearson
from hauberk.privacy.dp.audit.fdp import epsilon_fdp
from hauberk.privacy.dp.audit.gdp import epsilon_gdp, mu_lower_bound
from hauberk.privacy.dp.audit.one_run import epsilon_one_run_scores
from hauberk.privacy.dp.audit.thresholds import Scores
from hauberk.privacy.dp.audit.watching import likelihood_ratios, ordered, watch

Trainer = Callable[[nn.Module, Split, int], Any]
Floats = NDArray[np.float64]
BOUNDS: dict[str, Callable[..., float]] = {
    "gdp": epsilon_gdp, "f-dp": epsilon_fdp, "one-run": epsilon_one_run_scores, "clopper-pearson": epsilon_clopper_pearson,
}
MEANING = {
    "gdp": "assuming that errors trade as under Gaussian noise", "f-dp": "one run, against Gaussian trade-off curves",
    "one-run": "one run, no assumption", "clopper-pearson": "independent trials, no assumption",
}


@dataclasses.dataclass(frozen=True)
class Audit:
    """What an audit found.

    Arguments:
        claimed: the ε that the trainer, or its user, claims; infinite where none is.
        audited: the ε that the attack rules out up to, with the confidence of `interval`.
        delta: δ of both.
        interval: from `audited` upward: an attack only ever bounds from below.
        n: trials: tosses of a coin that the bound rests on.
        threat: what the adversary does and sees.
        bound: `gdp`, `f-dp`, `one-run` or `clopper-pearson`.
        signal: what gave it away: `gradient`, `order`, `scale` or `loss`.
        scores: of the trials behind the bound.
        reach: the ε that as many trials would show to an attack that is always right: no claim above it can be contradicted.
    """

    claimed: float
    audited: float
    delta: float
    interval: Interval
    n: int
    threat: str
    bound: str
    signal: str
    scores: Scores
    reach: float

    @property
    def verdict(self) -> str:
        """`violated`, `cannot tell` (no outcome would have contradicted the claim) or `stands`."""
        return "violated" if self.violated else "stands" if self.reach > self.claimed else "cannot tell"

    @property
    def violated(self) -> bool:
        """Whether the attack shows more than is claimed."""
        return self.audited > self.claimed

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as plain JSON values, without the scores."""
        names = ("claimed", "audited", "delta", "n", "threat", "bound", "signal", "reach", "verdict")
        told = {name: getattr(self, name) for name in names} | {"confidence": self.interval.confidence}
        told["claimed"] = self.claimed if math.isfinite(self.claimed) else None
        return told | {"assumption": MEANING[self.bound], "violated": self.violated}


def audit_training(
    train: Trainer, data: Split | None = None, *, model: nn.Module | None = None, claimed: float | None = None,
    delta: float = 1e-5, design: WhiteBox | BlackBox | None = None, bound: str | None = None, seed: int = 0,
) -> Audit:
    """Train with canaries, and return the ε claimed beside the ε that they show, at 95 %.

    Arguments:
        train: `(model, data, seed)`; trains all parameters of the model it is given, in place, by the cross-entropy of its
            outputs, with randomness from the seed. It may return its ε, or what has `spent(delta)`, as `make_private` does.
        data: ordinary records; needed for a `BlackBox`, with which a `WhiteBox` does without.
        model: over the data; it is copied for every run. None takes a linear one (white box only).
        claimed: the ε; None takes what the trainer returns.
        delta: δ of the claim.
        design: what the adversary does; None takes `WhiteBox()`.
        bound: None takes `gdp` for a white box and `one-run` for a black box.
        seed: of coins, canaries and runs.

    Returns:
        The audit.

    Raises:
        UsageError: for an unknown bound, a design that cannot be, or a trainer without a claim that returns something else.
        DataError: for a black box without data.
        ModelError: for a trainer that does not train the model it is given.
    """
    check(delta, 0.95)
    plan = design or WhiteBox()
    name = bound or ("gdp" if isinstance(plan, WhiteBox) else "one-run")
    if name not in BOUNDS:
        raise UsageError(f"the bound is '{name}'", want=", ".join(BOUNDS), fix=nearest(name, list(BOUNDS)))
    if plan.canaries < 1 or plan.runs < 1:
        raise UsageError(f"{plan.canaries} canaries in {plan.runs} runs", want="one of each; hundreds together")
    if isinstance(plan, WhiteBox):
        coins, signals, claims = _white_box(train, data, model, plan, delta, seed)
    else:
        coins, signals, claims = _black_box(train, data, model, plan, delta, seed)
    if claimed is None and any(one is None for one in claims):
        raise UsageError("nothing is claimed", want="claimed=..., or a trainer that returns its ε")
    claim = claimed if claimed is not None else max(float(one) for one in claims)
    signal, scores, cut = _choose(coins, signals, numpy_generator(seed, "halves"))
    audited = BOUNDS[name](scores, delta=delta, confidence=0.95, thresholds=cut)
    sure = Scores(np.ones(len(scores.members)), np.zeros(len(scores.others)))
    reach = BOUNDS[name](sure, delta=delta, confidence=0.95, thresholds=0.5)
    n = len(scores.members) + len(scores.others)
    return Audit(
        float(claim), audited, delta, Interval(audited, math.inf, name, 0.95), n, _threat(plan), name, signal, scores, reach
    )


def _white_box(
    train: Trainer, data: Split | None, model: nn.Module | None, plan: WhiteBox, delta: float, seed: int
) -> tuple[Tensor, dict[str, Floats], list[Any]]:
    if model is not None and data is None:
        raise DataError("a model is given without data", want="the data it takes", fix="Pass both, or neither")
    shape = data.shape if data is not None else (1,)
    coins = _coins(plan.runs, plan.canaries, seed)
    transcripts, claims = [], []
    for run in range(plan.runs):
        with isolated(derive_seed(seed, "run", run)):
            base = copy.deepcopy(model) if model is not None else nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2))
            probed = ProbeModel(base, shape, plan.canaries, plan.spare)
            split = gradient_canaries(plan, shape, coins[run])
            if data is not None:
                x, y = data.tensors()
                zeros = torch.zeros(len(x))
                parts = [(rows_of(x, zeros, zeros), y), split.tensors()]
                parts = parts if plan.remove else parts[::-1]  # what is missing shifts nobody's place
                split = Split(torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts]))
            with watch(probed) as transcript:
                claims.append(_claim(train(probed, split, derive_seed(seed, "trainer", run)), delta))
        transcripts.append(transcript)
    signals = {"gradient": likelihood_ratios(transcripts, coins)}
    if plan.runs > 1:
        signals["order"] = np.array([ordered(transcripts[run], transcripts[run - 1]) for run in range(plan.runs)])
    if plan.spare > 1 and plan.canaries == 1:
        scale = np.array([[np.mean(one.scales)] for one in transcripts])
        signals |= {"scale": scale, "scale, turned": -scale}
    return coins, signals, claims


def _black_box(
    train: Trainer, data: Split | None, model: nn.Module | None, plan: BlackBox, delta: float, seed: int
) -> tuple[Tensor, dict[str, Floats], list[Any]]:
    if data is None or model is None:
        raise DataError("a black box has no data or no model", want="the data and the model to train on it")
    if plan.kind not in ("mislabelled", "noise"):
        raise UsageError(f"the canaries are '{plan.kind}'", want="mislabelled or noise")
    with torch.no_grad():
        classes = model(data.first(2)[0]).shape[1]
    x, y = data.tensors()
    coins = _coins(plan.runs, plan.canaries, seed)
    losses, claims = [], []
    for run in range(plan.runs):
        canary, label = input_canaries(plan, data, classes, derive_seed(seed, "inputs", run))
        taught = Split(torch.cat([x, canary[coins[run]]]), torch.cat([y, label[coins[run]]]))
        with isolated(derive_seed(seed, "run", run)):
            trained = copy.deepcopy(model)
            claims.append(_claim(train(trained, taught, derive_seed(seed, "trainer", run)), delta))
            trained.eval()
            with torch.no_grad():
                losses.append(nn.functional.cross_entropy(trained(canary).double(), label, reduction="none").numpy())
    return coins, {"loss": -np.array(losses)}, claims


def _coins(runs: int, canaries: int, seed: int) -> Tensor:
    """Return which canaries are in, shape (runs, canaries): a fair coin each, but for single canaries as many runs in as out."""
    if canaries > 1:
        return torch.rand(runs, canaries, generator=generator(seed, "coins")) < 0.5
    return (torch.randperm(runs, generator=generator(seed, "coins")) < runs // 2)[:, None]


def _choose(coins: Tensor, signals: dict[str, Floats], rng: np.random.Generator) -> tuple[str, Scores, float]:
    """Return the signal and the cut that a quarter of the trials speak for, and its scores in the other three quarters."""
    inside = coins.flatten().numpy()
    sides = [rng.permutation(np.flatnonzero(inside == side)) for side in (True, False)]
    if min(map(len, sides)) < 4:
        raise UsageError(
            f"{len(sides[0])} trials are in and {len(sides[1])} out", want="4 of each at least; hundreds, to see much",
            fix="Ask for more runs or canaries",
        )
    first = np.concatenate([side[: len(side) // 4] for side in sides])
    rest = np.concatenate([side[len(side) // 4 :] for side in sides])
    found: list[tuple[float, str, float]] = []
    for name, values in signals.items():
        scores = _scores(values.reshape(-1)[first], inside[first])
        pool = np.concatenate([scores.members, scores.others])
        middle = (np.median(scores.members) + np.median(scores.others)) / 2
        cuts = [middle, *np.quantile(pool, (0.1, 0.3, 0.5, 0.7, 0.8, 0.9))]
        found += [(mu_lower_bound(scores, confidence=0.5, thresholds=float(cut)), name, float(cut)) for cut in cuts]
    _, name, cut = max(found, key=lambda one: one[0])
    return name, _scores(signals[name].reshape(-1)[rest], inside[rest]), cut


def _scores(values: Floats, inside: NDArray[np.bool_]) -> Scores:
    values = np.nan_to_num(values, nan=0.0, posinf=1e300, neginf=-1e300)
    return Scores(values[inside], values[~inside])


def _claim(returned: Any, delta: float) -> float | None:
    returned = returned.spent(delta) if hasattr(returned, "spent") else returned
    returned = getattr(returned, "epsilon", returned)
    return float(returned) if isinstance(returned, (int, float)) and not isinstance(returned, bool) else None


def _threat(plan: WhiteBox | BlackBox) -> str:
    if isinstance(plan, BlackBox):
        return f"puts in {plan.canaries} {plan.kind} records, sees the loss of the finished model, {plan.runs} run(s)"
    beside = f" with {plan.companions} records against each" if plan.companions else ""
    size = " and the size of the noise" if plan.spare > 1 and plan.canaries == 1 else ""
    return f"chooses {plan.canaries} gradients{beside}, sees the gradient of every step{size}, {plan.runs} run(s)"
