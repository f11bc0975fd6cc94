"""Attacks side by side at equal cost, after the protocol of AttackBench (Cinà et al. 2025, arXiv:2404.19460).

Every attack has 2,000 passes per sample, forward and backward counted as one each; what counts is the nearest adversarial point
it asked about. Attacks at a given radius are run in a bisection of each sample's own radius. Local optimality is one minus the
area between an attack's curve of robust accuracy and that of the nearest example any contender found, as a share of the most
there can be; global optimality is its mean over nets. Peers are those that can be imported: `--peer PATH` adds a folder or wheel.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import save
from hauberk import Target, Threat
from hauberk.core.access import Access
from hauberk.core.card import Card
from hauberk.methods import load_methods
from hauberk.robustness.evaluate import least_distances
from recorder import Exhausted, Recorder
from zoo import NAMES, digits, zoo

NORMS = ("l0", "l1", "l2", "linf")
ROUNDS = 10
MARGIN = 0.005
# Attacks at a given radius that are run in a bisection, in the norms they know.
AT_A_RADIUS = {"l0": ("pgd", "pgd-l0"), "l1": ("apgd", "apgd-t"), "l2": ("apgd", "apgd-t"), "linf": ("apgd", "apgd-t", "pgd")}
ENDS_EARLY = ("beam-search", "deepfool", "jsma", "superdeepfool", "sparse-fool")  # they spend what they need
_INNER = ("rounds", "restarts", "classes", "inner")

Run = Callable[[nn.Module, Tensor, Tensor], object]


def ours(norm: str, budget: int) -> dict[str, Run]:
    """Return every attack of the registry that seeks the nearest example by gradients in this norm, and those at a radius."""
    made: dict[str, Run] = {}
    for card in load_methods().cards("attack"):
        if card.facts["minimum_norm"] and norm in card.facts["norms"] and card.access is Access.GRADIENT:
            made[f"hauberk {card.name}"] = _nearest(card, norm, budget)
        elif card.name in AT_A_RADIUS[norm] and norm in card.facts["norms"]:
            made[f"hauberk {card.name} (bisection)"] = _bisected(card, norm, budget)
    return made


def _steps(card: Card, budget: int) -> dict[str, Any]:
    """Return the options that spend about the budget: a step is a pass forward and one backward, times what goes on inside it."""
    if "steps" not in card.options or card.name in ENDS_EARLY:
        return {}
    inner = math.prod(int(card.options[name].default) for name in _INNER if name in card.options)
    return {"steps": max(2, budget // 2 // inner)}


def _nearest(card: Card, norm: str, budget: int) -> Run:
    options = _steps(card, budget)
    return lambda model, x, y: card.function(model, x, y, Threat(norm, math.inf, bounds=(0.0, 1.0)), **options)


def _bisected(card: Card, norm: str, budget: int) -> Run:
    options = _steps(card, budget // ROUNDS)
    threat = Threat(norm, math.inf, bounds=(0.0, 1.0))
    return lambda model, x, y: least_distances(
        Target(model, bounds=(0.0, 1.0)), x, y, threat, attack=card.name, rounds=ROUNDS, **options
    )


def foolbox(norm: str, budget: int) -> dict[str, Run]:
    """Foolbox's attacks of minimum norm."""
    peer = importlib.import_module("foolbox")
    steps, kind = budget // 2, peer.attacks
    made = {
        "l0": {"FMN": kind.L0FMNAttack(steps=steps)},
        "l1": {"FMN": kind.L1FMNAttack(steps=steps), "EAD": kind.EADAttack(steps=steps // 9, decision_rule="L1")},
        "l2": {
            "DDN": kind.DDNAttack(steps=steps), "FMN": kind.L2FMNAttack(steps=steps), "DeepFool": kind.L2DeepFoolAttack(),
            "C&W": kind.L2CarliniWagnerAttack(steps=steps // 9),
        },
        "linf": {"FMN": kind.LInfFMNAttack(steps=steps), "DeepFool": kind.LinfDeepFoolAttack()},
    }[norm]

    def run(attack: Any) -> Run:
        return lambda model, x, y: attack(peer.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=None)

    return {f"foolbox {name}": run(attack) for name, attack in made.items()}


def torchattacks(norm: str, budget: int) -> dict[str, Run]:
    """torchattacks' attacks of minimum norm."""
    peer = importlib.import_module("torchattacks")
    steps = budget // 2
    made: dict[str, Callable[[nn.Module], Any]] = {
        "l2": {"C&W": lambda model: peer.CW(model, c=1, steps=steps), "DeepFool": lambda model: peer.DeepFool(model)},
        "l1": {"EAD": lambda model: peer.EADL1(model, max_iterations=steps // 9)},
    }.get(norm, {})

    def run(make: Callable[[nn.Module], Any]) -> Run:
        return lambda model, x, y: make(model)(x, y)

    return {f"torchattacks {name}": run(make) for name, make in made.items()}


def art(norm: str, budget: int) -> dict[str, Run]:
    """ART's DeepFool, the one of its attacks of minimum norm that ends in minutes."""
    if norm != "l2":
        return {}
    evasion = importlib.import_module("art.attacks.evasion")
    shell = importlib.import_module("art.estimators.classification").PyTorchClassifier

    def run(model: nn.Module, x: Tensor, y: Tensor) -> object:
        inside = shell(model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu")
        return evasion.DeepFool(inside, max_iter=50, batch_size=len(x), verbose=False).generate(x.numpy(), y.numpy())

    return {"ART DeepFool": run}


def adv_lib(norm: str, budget: int) -> dict[str, Run]:
    """adv-lib's attacks of minimum norm, and its APGD in the same bisection as ours."""
    _stand_in()
    peer = importlib.import_module("adv_lib.attacks")
    steps, order = budget // 2, {"l0": 0, "l1": 1, "l2": 2, "linf": math.inf}[norm]
    each = steps // ROUNDS
    made: dict[str, Run] = {
        "FMN": lambda model, x, y: peer.fmn(model, x, y, norm=order, steps=steps),
        "PDPGD": lambda model, x, y: peer.pdpgd(model, x, y, norm=order, num_steps=steps),
    }
    if norm == "l0":
        made["σ-zero"] = lambda model, x, y: peer.sigma_zero(model, x, y, num_steps=steps)
        made["VFGA"] = lambda model, x, y: peer.vfga(model, x, y, targeted=False)
    if norm == "l2":
        made["DDN"] = lambda model, x, y: peer.ddn(model, x, y, steps=steps, levels=None)
        made["PDGD"] = lambda model, x, y: peer.pdgd(model, x, y, num_steps=steps)
        made["ALMA"] = lambda model, x, y: peer.alma(model, x, y, num_steps=steps)
        made["TR"] = lambda model, x, y: peer.tr(model, x, y, iter=steps, p=2)
    if norm != "l0":
        made["FAB"] = lambda model, x, y: peer.fab(model, x, y, norm=order, n_iter=steps // 9)
        large = {"use_large_reps": True} if norm == "l1" else {}

        def apgd(model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
            return peer.apgd(model, x, y, eps=eps, norm=order, n_iter=each, **large)

        def apgd_t(model: nn.Module, x: Tensor, y: Tensor, eps: Tensor) -> Tensor:
            return peer.apgd_targeted(model, x, y, eps=eps, norm=order, n_iter=max(2, each // 9), **large)

        made["APGD (bisection)"] = lambda model, x, y: _bisect(apgd, model, x, y, norm)
        made["APGD-T (bisection)"] = lambda model, x, y: _bisect(apgd_t, model, x, y, norm)
    return {f"adv-lib {name}": run for name, run in made.items()}


def _bisect(attack: Callable[..., Tensor], model: nn.Module, x: Tensor, y: Tensor, norm: str) -> None:
    """Run a peer that takes a radius per sample round by round, at the radii that our own bisection would ask for next."""
    assert isinstance(model, Recorder)
    reach = {"l1": 64.0, "l2": 8.0, "linf": 1.0}[norm]
    low = torch.zeros(len(x), dtype=torch.float64)
    eps = torch.full_like(low, reach / 64)
    for _ in range(ROUNDS):
        before = model.distance.clone()
        z = attack(model, x, y, eps.float())
        model(z)  # what it returns is looked at as well
        failed = (model.distance >= before) & ~(model.distance <= eps)
        low = torch.where(failed, torch.maximum(low, eps), low)
        low = torch.where(low < model.distance, low, torch.zeros_like(low))
        eps = torch.where(model.distance.isfinite(), (low + model.distance) / 2, (4 * eps).clamp(max=reach))


def _stand_in() -> None:
    """Put empty modules where adv-lib imports drawing tools and image nets that no attack here needs."""

    class Nothing(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return Nothing(name)

        def __call__(self, *_: object, **__: object) -> Any:
            return self

    for name in ("torchvision", "torchvision.models", "torchvision.models._utils", "torchvision.transforms",
                 "torchvision.transforms.functional", "torchvision.utils", "visdom"):
        if name not in sys.modules:
            sys.modules[name] = Nothing(name)


PEERS = {"foolbox": foolbox, "torchattacks": torchattacks, "ART": art, "adv-lib": adv_lib}


def contenders(norm: str, budget: int) -> dict[str, Run]:
    """Return ours, and those of every peer that can be imported."""
    made = ours(norm, budget)
    for name, of in PEERS.items():
        try:
            made |= of(norm, budget)
        except ImportError as error:
            print(f"{name} is left out: {error}", flush=True)
    return made


def optimality(distances: dict[str, Tensor]) -> dict[str, float]:
    """Return the local optimality of each attack on one net: 1 where no other ever came nearer, 0 where it broke nothing."""
    best = torch.stack(list(distances.values())).amin(0)
    finite = best[best.isfinite()]
    farthest = float(finite.max()) if len(finite) else 0.0
    ideal = float(best.clamp(max=farthest).mean())
    most = float((best > 0).double().mean()) * farthest
    if most <= ideal:
        return dict.fromkeys(distances, 1.0)
    return {name: 1 - (float(one.clamp(max=farthest).mean()) - ideal) / (most - ideal) for name, one in distances.items()}


def measure(model: nn.Module, run: Run, x: Tensor, y: Tensor, norm: str, budget: int) -> dict[str, Any]:
    """Run one attack on one net with its account kept."""
    recorder, began, failed = Recorder(model, x, y, norm, budget), time.process_time(), ""
    try:
        run(recorder, x.clone(), y.clone())
    except Exhausted:
        pass
    except Exception as error:  # a peer that breaks down keeps what it found before
        failed = f"{type(error).__name__}: {error}"[:120]
    seconds = time.process_time() - began - recorder.seconds
    right = recorder.distance > 0
    return {
        "distance": recorder.distance, "seconds": seconds, "failed": failed,
        "success": float((~right | recorder.distance.isfinite()).double().mean()),
        "forwards": float(recorder.forwards.double().mean()),
        "backwards": float(recorder.backwards.double().mean()),
    }


def main() -> None:
    """Run all contenders on all nets in every norm asked for, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--norms", default=",".join(NORMS))
    parser.add_argument("--models", default="standard,linf", help=f"of {', '.join(NAMES)}, or all")
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--budget", type=int, default=2000, help="passes per sample")
    parser.add_argument("--only", default="", help="contenders whose name holds this")
    parser.add_argument("--peer", action="append", default=[], help="a folder or wheel to import peers from")
    parser.add_argument("--no-save", action="store_true")
    given = parser.parse_args()
    sys.path += [str(Path(one)) for one in given.peer]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = NAMES if given.models == "all" else tuple(given.models.split(","))
    nets = zoo(chosen)
    x, y = (part[: given.samples] for part in digits()[1].tensors())
    rows, content, notes = [], {}, []
    for norm in given.norms.split(","):
        runs = {name: run for name, run in contenders(norm, given.budget).items() if given.only in name}
        found: dict[str, dict[str, Any]] = {name: {} for name in runs}
        local: dict[str, dict[str, float]] = {name: {} for name in runs}
        for net, model in nets.items():
            for name, run in runs.items():
                torch.manual_seed(0)
                found[name][net] = measure(model, run, x, y, norm, given.budget)
                one = found[name][net]
                print(f"{norm} {net} {name}: {one['seconds']:.1f} s {one['failed']}", flush=True)
            for name, value in optimality({name: found[name][net]["distance"] for name in runs}).items():
                local[name][net] = value
        mean = {name: sum(local[name].values()) / len(nets) for name in runs}
        for name in sorted(runs, key=lambda one: -mean[one]):
            over = {key: sum(one[key] for one in found[name].values()) / len(nets)
                    for key in ("seconds", "success", "forwards", "backwards")}
            failed = "; ".join(sorted({one["failed"] for one in found[name].values() if one["failed"]}))
            rows.append([
                norm, name, f"{mean[name]:.3f}", *(f"{local[name][net]:.3f}" for net in nets), f"{over['success']:.3f}",
                f"{over['forwards']:.0f} + {over['backwards']:.0f}", f"{over['seconds']:.1f}", failed,
            ])
            content[f"{norm} {name}"] = {"global": mean[name], "local": local[name], **over, "failed": failed}
        own = {name: value for name, value in mean.items() if name.startswith("hauberk")}
        peers = {name: value for name, value in mean.items() if name not in own}
        if own and peers:
            a, b = max(own, key=lambda one: own[one]), max(peers, key=lambda one: peers[one])
            verdict = "met" if own[a] >= peers[b] - MARGIN else "missed"
            notes.append(f"{norm}: {a} {own[a]:.3f}, best peer {b} {peers[b]:.3f}: bar (peer - {MARGIN}) {verdict}.")
    columns = [
        "norm", "attack", "global optimality", *(f"local, {net}" for net in nets), "success", "forward + backward", "CPU s",
        "failed",
    ]
    title = f"Optimality at {given.budget} passes per sample, {given.samples} digits, {len(nets)} nets"
    if given.no_save:
        print("\n".join(" | ".join(row) for row in rows), *notes, sep="\n")
        return
    save("attack_bench", title, content, columns, rows, [
        *notes, "",
        "Seconds are CPU time per net without the keeping of accounts. An attack that ends early has spent what it says.",
        "The ideal is the nearest example that any contender of the table found: an optimality depends on who takes part.",
        "Made by `python benchmarks/attack_bench.py`.",
    ])


if __name__ == "__main__":
    main()
