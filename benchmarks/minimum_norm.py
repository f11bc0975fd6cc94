"""Attacks of minimum norm beside Foolbox, torchattacks and adv-lib: distance, success, passes and CPU time, on one thread."""

from __future__ import annotations

import importlib.metadata
import math
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from harness import alternate, save
from hauberk import Linf, Schedule, Split, Target, Threat, fit
from hauberk.robustness import attack as attacks
from hauberk.robustness.defend import adversarial

SAMPLES, HELD_OUT, ROUNDS, PASSES = 64, 500, 3, 2000
# What is claimed: (norm, ours, peer, seconds at most as a share of the peer's, median at most as a share of the peer's).
BARS = (
    ("l2", "hauberk deepfool", "foolbox deepfool", 1 / 2.5, 1.005),
    ("l2", "hauberk deepfool", "torchattacks deepfool", 1 / 15, 1.005),
    ("l2", "hauberk carlini_wagner", "adv-lib carlini_wagner", 1.05, 1.01),
    ("l2", "hauberk carlini_wagner (defaults)", "adv-lib carlini_wagner", 1.05, 1.01),
    ("l2", "hauberk ddn", "adv-lib ddn", None, 1.005),
    ("l2", "hauberk pdpgd", "adv-lib pdpgd", None, 1.005), ("l1", "hauberk fmn", "adv-lib fmn", None, 1.005),
    ("l1", "hauberk pdpgd", "adv-lib pdpgd", None, 1.005), ("l1", "hauberk ead", "foolbox ead", None, 1.005),
    ("l1", "hauberk alma", "adv-lib alma", None, 1.005), ("l2", "hauberk alma", "adv-lib alma", None, 1.005),
    ("l0", "hauberk sigma_zero", "adv-lib sigma_zero", None, 1.005), ("linf", "hauberk fmn", "adv-lib fmn", None, 1.005),
    ("linf", "hauberk pdpgd", "adv-lib pdpgd", None, 1.005),
)
Run = Callable[[], Tensor]


def nets() -> tuple[dict[str, nn.Module], Tensor, Tensor]:
    """A plain and an adversarially trained CNN for 8x8 digits, and the images to attack."""
    x, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(x / 16).float().reshape(-1, 1, 8, 8), torch.tensor(y)
    train = Split(images[HELD_OUT:], labels[HELD_OUT:])
    made = {}
    for name in ("standard", "adversarially trained"):
        torch.manual_seed(0)
        made[name] = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10),
        )
        if name == "standard":
            fit(made[name], train, schedule=Schedule(epochs=12, batch_size=64))
        else:
            fit(made[name], train, loss=adversarial(Linf(0.15), steps=7), schedule=Schedule(epochs=20, batch_size=64))
        made[name].eval()
    return made, images[:SAMPLES], labels[:SAMPLES]


def ours(model: nn.Module, x: Tensor, y: Tensor) -> dict[tuple[str, str], Run]:
    """Our attacks at about 2,000 passes a sample where their length is free, keyed by norm and name."""
    free = PASSES // 2 - 25  # what the opening and the trials at the end cost
    runs: dict[tuple[str, str], dict[str, Any]] = {
        ("l2", "deepfool"): {}, ("linf", "deepfool"): {}, ("l2", "superdeepfool"): {}, ("l2", "newton_fool"): {},
        ("l2", "lbfgs"): {}, ("l2", "carlini_wagner"): {"rounds": 9, "steps": 109}, ("l2", "carlini_wagner (defaults)"): {},
        ("l2", "ddn"): {"steps": free},
        ("l2", "fmn"): {"steps": free}, ("l2", "pdpgd"): {"steps": free}, ("l2", "alma"): {"steps": free},
        ("l2", "brendel_bethge"): {}, ("l1", "fmn"): {"steps": free}, ("l1", "pdpgd"): {"steps": free},
        ("l1", "alma"): {"steps": free}, ("l1", "ead"): {"rounds": 9, "steps": 108}, ("l1", "sparse_fool"): {},
        ("l1", "brendel_bethge"): {}, ("l0", "sigma_zero"): {"steps": free}, ("l0", "fmn"): {"steps": free},
        ("l0", "pdpgd"): {"steps": free}, ("l0", "brendel_bethge"): {}, ("linf", "fmn"): {"steps": free},
        ("linf", "pdpgd"): {"steps": free}, ("linf", "brendel_bethge"): {},
    }

    def run(norm: str, name: str, options: dict[str, Any]) -> Run:
        function = getattr(attacks, name.split()[0])
        return lambda: function(Target(model, batch_size=len(x)), x, y, Threat(norm, math.inf, bounds=(0.0, 1.0)), **options)

    return {(norm, f"hauberk {name}"): run(norm, name, options) for (norm, name), options in runs.items()}


def foolbox(model: nn.Module, x: Tensor, y: Tensor) -> dict[tuple[str, str], Run]:
    """Foolbox's attacks, at the same lengths."""
    import foolbox as peer

    wrapped, known = peer.PyTorchModel(model, bounds=(0, 1)), peer.attacks
    runs = {
        ("l2", "deepfool"): known.L2DeepFoolAttack(steps=50), ("linf", "deepfool"): known.LinfDeepFoolAttack(steps=50),
        ("l2", "ddn"): known.DDNAttack(steps=PASSES // 2), ("l2", "newton_fool"): known.NewtonFoolAttack(),
        ("l2", "fmn"): known.L2FMNAttack(steps=PASSES // 2), ("l1", "fmn"): known.L1FMNAttack(steps=PASSES // 2),
        ("l1", "ead"): known.EADAttack(binary_search_steps=9, steps=PASSES // 18, abort_early=False),
        ("l2", "carlini_wagner"): known.L2CarliniWagnerAttack(
            binary_search_steps=9, steps=PASSES // 18, stepsize=0.05, initial_const=1.0, abort_early=False
        ),
    }

    def run(attack: Any) -> Run:
        return lambda: attack(wrapped, x, y, epsilons=None)[1]

    return {(norm, f"foolbox {name}"): run(attack) for (norm, name), attack in runs.items()}


def torchattacks(model: nn.Module, x: Tensor, y: Tensor) -> dict[tuple[str, str], Run]:
    """torchattacks' DeepFool, sample by sample as it goes."""
    import torchattacks as peer

    attack = peer.DeepFool(model, steps=50, overshoot=0.02)
    return {("l2", "torchattacks deepfool"): lambda: attack(x, y)}


def adv_lib(model: nn.Module, x: Tensor, y: Tensor) -> dict[tuple[str, str], Run]:
    """adv-lib's attacks; it imports torchvision and visdom, which its attacks do not use: stand-ins will do."""
    inside = ("transforms", "models", "datasets", "utils")
    for name in ("visdom", "torchvision", *(f"torchvision.{part}" for part in inside)):
        sys.modules.setdefault(name, _StandIn(name))
    from adv_lib import attacks as peer

    steps = PASSES // 2
    calls: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {
        ("l2", "deepfool"): (peer.df, {"steps": 50}), ("linf", "deepfool"): (peer.df, {"steps": 50, "norm": math.inf}),
        ("l2", "superdeepfool"): (peer.sdf, {}), ("l2", "ddn"): (peer.ddn, {"steps": steps, "levels": None}),
        ("l2", "carlini_wagner"): (
            peer.carlini_wagner_l2,
            {
                "binary_search_steps": 9, "max_iterations": PASSES // 18, "initial_const": 1.0, "learning_rate": 0.05,
                "abort_early": False,
            },
        ),
        ("l0", "sigma_zero"): (peer.sigma_zero, {"num_steps": steps}), ("l2", "alma"): (peer.alma, {"num_steps": steps}),
        ("l1", "alma"): (peer.alma, {"num_steps": steps, "distance": "l1"}),
    }
    for norm, order in (("l0", 0), ("l1", 1), ("l2", 2), ("linf", math.inf)):
        calls[norm, "fmn"] = peer.fmn, {"norm": order, "steps": steps}
        calls[norm, "pdpgd"] = peer.pdpgd, {"norm": order, "num_steps": steps}

    def run(function: Any, options: dict[str, Any]) -> Run:
        return lambda: function(model, x, y, **options)

    return {(norm, f"adv-lib {name}"): run(*call) for (norm, name), call in calls.items()}


class _StandIn(types.ModuleType):
    """A module of which every name is an empty class."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def measure(model: nn.Module, x: Tensor, y: Tensor, norm: str, run: Run) -> dict[str, float]:
    """Return success, median and mean distance, passes per sample and CPU seconds of one run, all counted here."""
    passes = 0

    def count(_: nn.Module, given: tuple[Tensor, ...], answer: Tensor) -> None:
        nonlocal passes
        passes += len(given[0])
        if answer.requires_grad:
            answer.register_hook(back)

    def back(gradient: Tensor) -> None:
        nonlocal passes
        passes += len(gradient)

    hook = model.register_forward_hook(count)
    began = time.process_time()
    z = run().detach()
    seconds = time.process_time() - began
    hook.remove()
    with torch.no_grad():
        hit = model(z).argmax(1) != y
    delta = (z.double() - x.double()).flatten(1).abs()
    size = {"linf": delta.amax(1), "l2": delta.norm(dim=1), "l1": delta.sum(1), "l0": (delta > 0).sum(1).double()}[norm]
    distance = torch.where(hit, size, torch.inf)
    return {
        "success": float(hit.double().mean()), "median": float(distance.median()), "mean": float(size[hit].mean()),
        "passes": passes / len(x), "seconds": seconds,
    }


def main() -> None:
    """Run all contenders in turn on both nets, write the table and say which bars are met."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    models, x, y = nets()
    rows, content, verdicts = [], {}, []
    for title, model in models.items():
        runs = ours(model, x, y)
        for peer, package in ((foolbox, "foolbox"), (torchattacks, "torchattacks"), (adv_lib, "adv-lib")):
            try:
                runs |= peer(model, x, y)
                print(f"{package} {importlib.metadata.version(package)}")
            except (ImportError, importlib.metadata.PackageNotFoundError) as error:
                print(f"{package} is left out: {error}")
        table: dict[str, dict[str, Any]] = {}
        for norm in ("l2", "linf", "l1", "l0"):
            here = {name: run for (at, name), run in runs.items() if at == norm}
            timed = {name for at, *pair, share, _ in BARS if at == norm and share is not None for name in pair}
            seconds = alternate({name: here[name] for name in sorted(timed & set(here))}, rounds=ROUNDS) if timed else {}
            for name, run in here.items():
                found = measure(model, x, y, norm, run)
                rounds = seconds.get(name, [found["seconds"]])
                found["milliseconds"] = 1000 * statistics.median(rounds) / len(x)
                table[f"{norm} {name}"] = {**found, "rounds": rounds}
                rows.append([
                    title, norm, name, f"{found['median']:.4f}", f"{found['mean']:.4f}", f"{found['success']:.3f}",
                    f"{found['passes']:.0f}", f"{found['milliseconds']:.2f}",
                ])
                print(" | ".join(rows[-1]), flush=True)
        content[title] = table
        verdicts += judged(title, table)
    save(
        "minimum_norm", f"Attacks of minimum norm on CNNs for 8x8 digits, {SAMPLES} images, about {PASSES:,} passes where free",
        {"nets": content, "bars": verdicts},
        ["net", "norm", "attack", "median", "mean", "success", "passes", "CPU ms a sample"], rows,
        [
            "Passes are forward and backward per sample, one each. CPU time: contenders in turn, one thread; the median of",
            f"{ROUNDS} rounds where a bar speaks of time, else one. A sample without success counts as infinitely far in the",
            "median and is left out of the mean. Peers run their attack of the same name at the same number of steps; foolbox's",
            "FMN in L2 does not project (a known defect).",
            "", "Bars:", "", *(f"- {line}" for line in verdicts), "", "Made by `make bench`.",
        ],
    )


def judged(title: str, table: dict[str, dict[str, Any]]) -> list[str]:
    """Return one line for every bar whose contenders were there."""
    lines = []
    for norm, mine, theirs, seconds, distance in BARS:
        if f"{norm} {theirs}" not in table:
            continue
        one, other = table[f"{norm} {mine}"], table[f"{norm} {theirs}"]
        share = statistics.median(a / b for a, b in zip(one["rounds"], other["rounds"], strict=True))
        # Two that find the same distance are equal whatever the last digits say; none found is farther than any.
        length = one["median"] / other["median"] if math.isfinite(other["median"]) else 0.0
        met = length <= distance and (seconds is None or share <= seconds)
        wanted = f"distance ≤ {distance:g}" + ("" if seconds is None else f", time ≤ {seconds:.3f}")
        verdict = "met" if met else "MISSED"
        lines.append(f"{title}, {norm}: {mine} / {theirs}: distance {length:.4f}, time {share:.3f} ({wanted}): {verdict}")
    return lines


if __name__ == "__main__":
    main()
