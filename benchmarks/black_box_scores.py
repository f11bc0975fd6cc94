"""Attacks by scores on the digits CNN: how many inputs they turn at a fixed budget, and after how many queries.

Every query of every contender passes through one counter, which knows the sample it belongs to: success is the first point asked
about that lies in the ball and reaches the goal, whatever the attack returns and however it counts by itself.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from harness import save
from hauberk import L0, L2, Linf, Schedule, Split, Target, Threat, fit
from hauberk.robustness import attack

COUNT, BUDGET = 100, 1000
MARKS = (10, 30, 100, 300, 1000)
Run = Callable[[nn.Module, Tensor, Tensor, Threat], Tensor]


class Watch(nn.Module):
    """The model, and a record of who asked when first about a point that reaches the goal."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> None:
        super().__init__()
        self.model, self.x, self.y, self.threat = model, x, y, threat
        self.asked = torch.zeros(len(x), dtype=torch.long)
        self.first = torch.full((len(x),), 2**31)
        self.only: int | None = None  # whose turn it is, where samples are attacked one by one

    def forward(self, z: Tensor) -> Tensor:
        """Answer, and note."""
        with torch.no_grad():
            answer = self.model(z)
            if self.only is not None:
                owner = torch.full((len(z),), self.only)
            else:  # samples lie farther apart, in the norm of the threat, than a candidate can be from its own and another's
                power = {"linf": float("inf"), "l2": 2.0, "l0": 0.0}[self.threat.norm]
                owner = torch.cdist(z.flatten(1), self.x.flatten(1), p=power).argmin(1)
            turn = nn.functional.one_hot(owner, len(self.x)).cumsum(0).gather(1, owner[:, None])[:, 0]
            number = self.asked[owner] + turn
            self.asked += torch.bincount(owner, minlength=len(self.x))
            clean, slack = self.x[owner], 1e-5 * (self.threat.norm != "l0")
            near = self.threat.distance(z, clean) <= torch.as_tensor(self.threat.eps) + slack
            hit = near & ((z >= -slack) & (z <= 1 + slack)).flatten(1).all(1) & self.threat.success(answer, self.y[owner])
            self.first.scatter_reduce_(0, owner[hit], number[hit], "amin")
        return answer


def ours(function: Any, **options: Any) -> tuple[Run, bool]:
    """Return an attack of ours, all samples at once."""
    return lambda model, x, y, threat: function(Target(model, outputs="logits"), x, y, threat, queries=BUDGET, **options), True


def ours_alone(function: Any, **options: Any) -> tuple[Run, bool]:
    """Return an attack of ours whose candidates leave the ball, so that the counter is told whose they are."""
    return ours(function, **options)[0], False


def torchattack(name: str, **options: Any) -> tuple[Run, bool]:
    """Return an attack of torchattacks, one sample at a time."""
    import torchattacks

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        return getattr(torchattacks, name)(model, **options)(x, y)

    return run, False


def foolbox_genetic() -> tuple[Run, bool]:
    """Return Foolbox's GenAttack, its population as ours."""
    import foolbox

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        search = foolbox.attacks.GenAttack(steps=BUDGET // 10, population=10, reduced_dims=None)
        return search(wrapped, x, foolbox.TargetedMisclassification(y), epsilons=threat.eps)[1].detach()

    return run, False


def art(name: str, **options: Any) -> tuple[Run, bool]:
    """Return an attack of ART, one sample at a time; probabilities, as its SimBA demands."""
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        shell = PyTorchClassifier(
            nn.Sequential(model, nn.Softmax(1)), nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0),
            device_type="cpu",
        )
        labels = nn.functional.one_hot(y, 10).numpy()
        return torch.from_numpy(getattr(evasion, name)(shell, verbose=False, **options).generate(x.numpy(), labels))

    return run, False


def contenders() -> dict[str, tuple[Threat, dict[str, Callable[[], tuple[Run, bool]]]]]:
    """Return what runs under which threat; a peer that is not installed is left out."""
    both = {
        "square": lambda: ours(attack.square), "nes": lambda: ours(attack.nes), "spsa": lambda: ours(attack.spsa),
        "bandits": lambda: ours(attack.bandits), "sign-hunter": lambda: ours(attack.sign_hunter),
        "simba, pixels": lambda: ours(attack.simba), "simba, waves": lambda: ours(attack.simba, basis="dct"),
        "pso": lambda: ours(attack.pso), "nes-partial, top 1": lambda: ours(attack.nes_partial),
        "nes-label": lambda: ours_alone(attack.nes_label),
    }
    return {
        "Linf, ε = 0.1": (Linf(0.1, bounds=(0, 1)), {
            **both, "gen-attack": lambda: ours(attack.gen_attack),
            "torchattacks Square": lambda: torchattack("Square", eps=0.1, n_queries=BUDGET),
            "torchattacks SPSA": lambda: torchattack("SPSA", eps=0.1, nb_sample=32, max_batch_size=32, nb_iter=BUDGET // 65),
        }),
        "Linf, ε = 0.15, targeted": (Linf(0.15, bounds=(0, 1)).targeted(), {
            "square": both["square"], "gen-attack": lambda: ours(attack.gen_attack), "nes": both["nes"],
            "foolbox GenAttack": foolbox_genetic,
        }),
        "L2, ε = 0.6": (L2(0.6, bounds=(0, 1)), {
            **both, "zoo": lambda: ours_alone(attack.zoo),
            "torchattacks Square": lambda: torchattack("Square", norm="L2", eps=0.6, n_queries=BUDGET),
            "ART SimBA": lambda: art("SimBA", epsilon=0.12, max_iter=BUDGET // 2),
            "ART ZOO": lambda: art(
                "ZooAttack", max_iter=BUDGET // 128, nb_parallel=64, use_resize=False, use_importance=False,
                binary_search_steps=1, learning_rate=0.1, initial_const=1.0,
            ),
        }),
        "L0, 1 pixel": (L0(1, bounds=(0, 1)), {
            "one-pixel": lambda: ours(attack.one_pixel),
            "torchattacks OnePixel": lambda: torchattack("OnePixel", pixels=1, steps=BUDGET // 20 - 1, popsize=20),
        }),
        "L0, 3 pixels": (L0(3, bounds=(0, 1)), {
            "one-pixel": lambda: ours(attack.one_pixel),
            "torchattacks OnePixel": lambda: torchattack("OnePixel", pixels=3, steps=BUDGET // 20 - 1, popsize=20),
        }),
    }


def samples() -> tuple[nn.Module, Tensor, Tensor]:
    """Train the CNN and return it with inputs it answers rightly, each far from all others."""
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x / 16.0).float().reshape(-1, 1, 8, 8), torch.tensor(y)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
    )
    fit(model, Split(images[:1297], labels[:1297]), schedule=Schedule(epochs=12, batch_size=64))
    rest, wanted = images[1297:], labels[1297:]
    right = model.eval()(rest).argmax(1) == wanted
    chosen: list[int] = []
    for i in right.nonzero()[:, 0].tolist():
        apart = [(rest[i] - rest[j]).abs() for j in chosen]
        if all(float(one.norm()) > 1.4 and float(one.max()) > 0.31 for one in apart):
            chosen.append(i)
    chosen = chosen[:COUNT]
    assert len(chosen) == COUNT, f"{len(chosen)} inputs lie far enough from each other"
    return model, rest[chosen], wanted[chosen]


def measure(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, run: Run, together: bool) -> dict[str, Any]:
    """Return the queries at which each sample was won, in one run."""
    watch = Watch(model, x, y, threat).eval()
    torch.manual_seed(0)  # for the peers, which draw from the global states
    np.random.seed(0)
    if together:
        given = run(watch, x, y, threat)
    else:
        parts = []
        for i in range(len(x)):
            watch.only = i
            parts.append(run(watch, x[i : i + 1], y[i : i + 1], threat))
        given = torch.cat(parts)
    with torch.no_grad():
        reached = threat.success(model(given), y) & (threat.distance(given, x) <= float(threat.eps) * (1 + 1e-5))
    won = sorted(one for one in watch.first.tolist() if one <= BUDGET)
    # Those that hold count as the whole budget in the mean, so that giving up early is no merit.
    mean = (sum(won) + BUDGET * (len(x) - len(won))) / len(x)
    return {
        "success": len(won) / len(x), "returned": float(reached.float().mean()),
        "median": statistics.median(won) if won else None, "mean": mean,
        "most_asked": int(watch.asked.max()), "curve": {mark: sum(one <= mark for one in won) / len(x) for mark in MARKS},
    }


def main() -> None:
    """Train, run all, write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model, x, y = samples()
    rows, content = [], {}
    for title, (threat, runs) in contenders().items():
        wanted = (y + 1) % 10 if "targeted" in title else y
        for name, make in runs.items():
            try:
                run, together = make()
            except ImportError as error:
                print(f"{name} is left out: {error}")
                continue
            began = time.process_time()
            found = measure(model, x, wanted, threat, run, together)
            print(f"{title}: {name}: {found['success']:.2f} won, {time.process_time() - began:.0f} CPU s", flush=True)
            content[f"{title}: {name}"] = found
            median = "-" if found["median"] is None else f"{found['median']:.0f}"
            curve = [f"{share:.2f}" for share in found["curve"].values()]
            rows.append([
                title, name, *curve, f"{found['returned']:.2f}", median, f"{found['mean']:.0f}", f"{found['most_asked']}",
            ])
    columns = [
        "threat", "attack", *(f"won after {mark}" for mark in MARKS), "won as returned", "median of those won",
        "mean, those that hold as the budget", "most asked of one sample",
    ]
    notes = [
        "A peer that asks more than the budget is cut there; one that asks less has ended. All with their defaults but for the",
        "radius and what sets the budget; ART's ZOO with its binary search and resizing off, and a step that can arrive.",
        "torchattacks' SPSA asks about probes alone, never about its iterates; what it returns is judged in `won as returned`.",
        "ART's SimBA and ZOO know no radius: what they find counts where it lies in the ball. One seed each.",
        "Made by `make bench`.",
    ]
    title = f"Attacks by scores, small CNN on 8x8 digits, n = {COUNT}, at most {BUDGET} queries a sample"
    save("black_box_scores", title, content, columns, rows, notes)


if __name__ == "__main__":
    main()
