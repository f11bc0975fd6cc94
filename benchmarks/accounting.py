"""ε of the accountants beside dp-accounting's own PLD, with seconds; the central-limit figure shows what is no bound."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import dp_accounting as dp
from dp_accounting.pld import PLDAccountant

from harness import save
from hauberk.privacy.dp.accounting import Release, epsilon, noise_for
from hauberk.privacy.dp.accounting import pld as distributions

ROUNDS = 5
ROWS = [
    (0.01, 4.0, 10_000, 1e-5), (256 / 60_000, 1.1, 14_063, 1e-5), (256 / 60_000, 1.3, 3516, 1e-5),
    (256 / 60_000, 0.7, 10_547, 1e-5),
    (0.01, 1.0, 1000, 1e-5), (0.02, 0.8, 500, 1e-6), (0.001, 0.5, 2000, 1e-6), (0.1, 2.0, 200, 1e-5), (0.08192, 9.4, 2450, 1e-5),
    (1.0, 10.0, 100, 1e-5), (0.04, 1.5, 2250, 1e-5),
]
BUDGETS = [(1.0, 256 / 60_000, 2344, 1.05030), (3.0, 256 / 60_000, 2344, 0.69370), (8.0, 0.08192, 2450, 2.55222)]


def timed(call: Callable[[], float], rounds: int = ROUNDS) -> tuple[float, float]:
    """Return the value and the median of CPU seconds, nothing remembered between rounds."""
    seconds, value = [], 0.0
    for _ in range(rounds):
        distributions._all.cache_clear()
        distributions._single.cache_clear()
        began = time.process_time()
        value = call()
        seconds.append(time.process_time() - began)
    return value, statistics.median(seconds)


def peer(rate: float, noise: float, count: int, delta: float) -> float:
    event = dp.GaussianDpEvent(noise)
    event = event if rate == 1 else dp.PoissonSampledDpEvent(rate, event)
    return float(PLDAccountant().compose(event, count).get_epsilon(delta))


def main() -> None:
    rows, kept = [], []
    epsilon([Release("gaussian", 1.0)], 1e-5)  # imports
    for rate, noise, count, delta in ROWS:
        made = [Release("gaussian", noise, "full" if rate == 1 else "poisson", rate, count)]
        ours, mine = timed(lambda made=made, delta=delta: epsilon(made, delta).epsilon)
        theirs, other = timed(lambda row=(rate, noise, count, delta): peer(*row))
        rdp = epsilon(made, delta, accountant="rdp").epsilon
        gdp = epsilon(made, delta, accountant="gdp").epsilon
        rows.append([
            f"{rate:.6g}", f"{noise:g}", f"{count:,}", f"{delta:g}", f"{ours:.5f}", f"{theirs:.5f}",
            f"{(ours / theirs - 1) * 100:+.4f} %", f"{mine:.2f}", f"{other:.2f}", f"{rdp:.5f}", f"{gdp:.5f}",
        ])
        kept.append({
            "rate": rate, "noise": noise, "steps": count, "delta": delta, "pld": ours, "peer": theirs, "rdp": rdp, "gdp": gdp,
            "seconds": mine, "peer_seconds": other,
        })
    found: list[dict[str, Any]] = []
    for budget, rate, count, value in BUDGETS:
        noise, seconds = timed(lambda b=budget, q=rate, c=count: noise_for(b, 1e-5, rate=q, count=c), 1)
        found.append({"budget": budget, "rate": rate, "steps": count, "noise": noise, "reference": value, "seconds": seconds})
    save(
        "accounting", "ε of Poisson-sampled Gaussian steps, beside dp-accounting's PLD", {"table": kept, "calibration": found},
        ["rate", "noise", "steps", "δ", "PLD", "dp-accounting PLD", "above it", "s", "its s", "RDP", "GDP (no bound)"], rows,
        [
            *(f"ε {one['budget']:g}, rate {one['rate']:.6g}, {one['steps']:,} steps: noise {one['noise']:.5f} "
              f"(reference {one['reference']:.5f}) in {one['seconds']:.1f} s." for one in found),
            f"CPU seconds, median of {ROUNDS}, nothing cached between rounds. Bars: never below, at most 1 % above, under 1 s.",
            "Made by `benchmarks/accounting.py`.",
        ],
    )


if __name__ == "__main__":
    main()
