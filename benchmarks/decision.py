"""Attacks by labels alone: how near they come within 250, 1,000 and 4,000 queries per sample, beside the peers, in one run."""

from __future__ import annotations

import importlib.metadata
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from harness import save
from hauberk import Schedule, Split, Target, Threat, fit
from hauberk.core.geometry import norms
from hauberk.robustness.attack import boundary, geoda, hop_skip_jump, pointwise, rays, salt_and_pepper, sign_opt, surfree

BUDGETS, SAMPLES, SEEDS = (250, 1000, 4000), 50, 3
OURS = {
    "l2": [hop_skip_jump, boundary, sign_opt, geoda, surfree], "linf": [hop_skip_jump, rays, geoda], "l1": [geoda],
    "l0": [pointwise, salt_and_pepper],
}


class Enough(Exception):
    """The last budget is spent."""


class Watched(nn.Module):
    """A model that notes the nearest adversarial point it is asked about within each budget, whatever the attack returns.

    Every call has to hold as many rows for each of the samples x, in their order (one sample: any rows).
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, norm: str, last: int) -> None:
        super().__init__()
        self.inner, self.x, self.y, self.norm, self.last = model, x, y, norm, last
        self.asked, self.calls = 0, 0
        self.best = torch.full((len(x),), math.inf, dtype=torch.float64)
        self.within: dict[int, Tensor] = {}

    def forward(self, z: Tensor) -> Tensor:
        """Return the model's scores."""
        out = self.inner(z)
        self.calls += 1
        rows = len(z) // len(self.x)
        for first in range(rows):
            part = slice(first * len(self.x), (first + 1) * len(self.x))
            far = norms((z[part].double() - self.x.double()).flatten(1), self.norm)
            self.best = torch.where(out[part].argmax(1) != self.y, torch.minimum(self.best, far), self.best)
            self.asked += 1
            if self.asked in BUDGETS:
                self.within[self.asked] = self.best.clone()
            if self.asked >= self.last:
                raise Enough
        return out

    def at(self, budget: int) -> Tensor:
        """Return the distances within the budget; an attack that ended before it got no nearer."""
        return self.within.get(budget, self.best)


def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A CNN for 8x8 digits and 50 held-out samples that it labels right."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order])
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )
    fit(model, Split(x[500:], y[500:]), schedule=Schedule(epochs=12, batch_size=64))
    right = (model.eval()(x[:100]).argmax(1) == y[:100]).nonzero()[:SAMPLES, 0]
    return model, x[right], y[right]


def ours(model: nn.Module, x: Tensor, y: Tensor, norm: str, method: Callable[..., Tensor], alone: bool = False) -> dict[str, Any]:
    """Run a method of ours with each budget: distances (mean over the seeds), model calls and CPU seconds."""
    threat, found, calls, seconds = Threat(norm, math.inf), {}, {}, {}
    for budget in (1000,) if alone else BUDGETS:
        target, began, runs = Target(model), time.process_time(), []
        for seed in range(1 if alone else SEEDS):
            parts = [slice(i, i + 1) for i in range(len(x))] if alone else [slice(None)]
            z = torch.cat([method(target, x[part], y[part], threat, queries=budget, seed=seed) for part in parts])
            far = threat.distance(z, x)
            runs.append(torch.where(model(z).argmax(1) != y, far, math.inf))
        seconds[budget] = (time.process_time() - began) / len(runs)
        found[budget], calls[budget] = torch.stack(runs), target.ledger.calls / len(runs)
    return {"found": found, "calls": calls, "seconds": seconds}


def watch(
    model: nn.Module, x: Tensor, y: Tensor, norm: str, attack: Callable[[nn.Module, Tensor, Tensor], Any], last: int, alone: bool
) -> dict[str, Any]:
    """Run a peer, on all samples at once or one by one, and read off the nearest point within each budget."""
    parts = [slice(i, i + 1) for i in range(len(x))] if alone else [slice(None)]
    watched, began, failed = [], time.process_time(), 0
    for part in parts:
        one = Watched(model, x[part], y[part], norm, last).eval()
        try:
            with torch.no_grad():
                attack(one, x[part], y[part])
        except Enough:
            pass
        except ValueError:  # foolbox: no start was found for some sample
            failed += 1
        watched.append(one)
    reached = [budget for budget in BUDGETS if budget <= last]
    return {
        "found": {budget: torch.cat([one.at(budget) for one in watched])[None] for budget in reached},
        "calls": {last: sum(one.calls for one in watched)}, "seconds": {last: time.process_time() - began}, "failed": failed,
    }


def peers(norm: str) -> dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], Any], int, bool]]:
    """The peers for a norm: how to run each, up to how many queries, and whether one by one."""
    made: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], Any], int, bool]] = {}
    try:
        import foolbox

        called = f"foolbox {importlib.metadata.version('foolbox')}"

        def of_foolbox(attack: Any) -> Callable[[nn.Module, Tensor, Tensor], Any]:
            return lambda model, x, y: attack.run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y)

        if norm in ("l2", "linf"):
            jump = of_foolbox(foolbox.attacks.HopSkipJumpAttack(constraint=norm, initial_gradient_eval_steps=50))
            made[f"{called} HopSkipJump, batch of {SAMPLES}"] = (jump, 4000, False)
            made[f"{called} HopSkipJump, one by one"] = (jump, 1000, True)
        if norm == "l2":
            made[f"{called} Boundary"] = (of_foolbox(foolbox.attacks.BoundaryAttack(steps=4000)), 4000, False)
        if norm == "l0":
            made[f"{called} SaltAndPepper"] = (of_foolbox(foolbox.attacks.SaltAndPepperNoiseAttack(steps=4000)), 4000, False)
    except ImportError as error:
        print(f"foolbox is left out: {error}")
    try:
        from art.attacks.evasion import GeoDA, HopSkipJump, SignOPTAttack
        from art.estimators.classification import BlackBoxClassifier, PyTorchClassifier

        called = f"ART {importlib.metadata.version('adversarial-robustness-toolbox')}"

        def black_box(model: nn.Module) -> Any:  # its PyTorch classifier fails there: doubles are sent to a float32 model
            def answers(rows: np.ndarray) -> np.ndarray:
                return model(torch.as_tensor(rows, dtype=torch.float32)).numpy()

            return BlackBoxClassifier(answers, (1, 8, 8), 10, clip_values=(0.0, 1.0))

        def white_box(model: nn.Module) -> Any:
            return PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")

        if norm in ("l2", "linf"):
            order = 2 if norm == "l2" else np.inf
            made[f"{called} HopSkipJump, one by one"] = (
                lambda model, x, y: HopSkipJump(
                    black_box(model), norm=order, max_iter=64, init_eval=50, max_eval=1000, verbose=False
                ).generate(x.numpy()), 4000, True,
            )
            made[f"{called} GeoDA"] = (
                lambda model, x, y: GeoDA(white_box(model), norm=order, sub_dim=8, verbose=False).generate(x.numpy()), 1000, True,
            )
        if norm == "l2":
            made[f"{called} Sign-OPT, one by one"] = (
                lambda model, x, y: SignOPTAttack(
                    black_box(model), targeted=False, k=40, query_limit=1000, verbose=False
                ).generate(x.numpy()), 1000, True,
            )
    except ImportError as error:
        print(f"ART is left out: {error}")
    return made


def row(norm: str, name: str, run: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """Note the figures of a run and return its line of the table."""
    middle = (lambda found: found.mean(1)) if norm == "l0" else (lambda found: found.quantile(0.5, dim=1))
    figures = {budget: float(middle(found).mean()) for budget, found in run["found"].items()}
    content[f"{norm}: {name}"] = {"distance": figures, "calls": run["calls"], "seconds": run["seconds"]}
    longest = max(run["calls"])
    cells = [f"{figures[budget]:.4g}" if budget in figures else "–" for budget in BUDGETS]
    return [norm, name, *cells, f"{run['calls'][longest]:,.0f} ({longest:,})", f"{run['seconds'][longest]:.1f}"]


def main() -> None:
    """Train the net, run all, write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    np.random.seed(0)
    model, x, y = trained()
    rows: list[list[str]] = []
    content: dict[str, Any] = {}
    for norm, methods in OURS.items():
        for method in methods:
            name = f"hauberk {method.__name__.replace('_', '-')}"
            rows.append(row(norm, name, ours(model, x, y, norm, method), content))
            if method is hop_skip_jump:
                rows.append(row(norm, f"{name}, one by one", ours(model, x, y, norm, method, alone=True), content))
        for name, (attack, last, alone) in peers(norm).items():
            try:
                rows.append(row(norm, name, watch(model, x, y, norm, attack, last, alone), content))
            except Exception as error:  # a peer that does not run is a line of the table
                text = f"{type(error).__name__}: {error}".splitlines()[0][:90]
                content[f"{norm}: {name}"] = {"error": text}
                rows.append([norm, name, f"does not run ({text})", "", "", "", ""])
    save(
        "decision", f"Attacks by labels alone on a CNN for 8x8 digits, n = {SAMPLES}", content,
        ["norm", "implementation", *[f"{budget:,} queries" for budget in BUDGETS], "model calls (at so many queries)", "CPU s"],
        rows,
        [
            "Median distance of the nearest adversarial point within so many queries per sample (for L0 the mean number of",
            f"changed features). Ours: mean over {SEEDS} seeds, each budget a run of its own that was told the budget. Peers",
            "keep to no budget: one run each, counted and watched from outside, with the nearest adversarial point *asked",
            "about* taken whether it is returned or not, and ended at the last figure shown. One thread; calls and seconds of",
            "one run over all samples.",
        ],
    )


if __name__ == "__main__":
    main()
