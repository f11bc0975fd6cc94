"""AutoAttack beside the reference's: robust flags, accuracy left, propagations and seconds, on nets that train in seconds."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from harness import save
from hauberk import L1, L2, Linf, Schedule, Split, Threat, fit
from hauberk.robustness.attack import auto_attack, fast_ensemble
from hauberk.robustness.defend import adversarial

N, SEED = 300, 0
HARD = "trained against PGD, 10 classes"


@dataclasses.dataclass
class Fixture:
    """A net, the inputs to attack, and the radius."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    classes: int


@dataclasses.dataclass
class Run:
    """What one contender did on one fixture."""

    held: Tensor
    forwards: float
    backwards: float
    seconds: float

    @property
    def propagations(self) -> float:
        """Forwards and backwards per sample."""
        return self.forwards + self.backwards


class Counter:
    """Counts the samples that pass a module, forwards and backwards, by hooks: the same for everybody."""

    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[Counter]:
        """Count while the block runs."""

        def passed(_module: nn.Module, _inputs: object, out: Tensor) -> None:
            self.forwards += len(out)
            if out.requires_grad:
                out.register_hook(returned)

        def returned(gradient: Tensor) -> None:
            self.backwards += len(gradient)

        hook = model.register_forward_hook(passed)
        try:
            yield self
        finally:
            hook.remove()


def digits(classes: int) -> tuple[Split, Split]:
    """Real digits, 8x8, of the first so many classes: N to attack, the rest to train on."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    order = order[y[order] < classes]
    images = torch.tensor(x[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(y[order])
    return Split(images[N:], labels[N:]), Split(images[:N], labels[:N])


def small_cnn(classes: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, classes),
    )


def fixtures() -> Iterator[Fixture]:
    """Nets without a defence and trained against PGD, of ten, three and two classes."""
    for classes in (10, 3, 2):
        train, test = digits(classes)
        x, y = test.tensors()
        plain, hard = small_cnn(classes), small_cnn(classes)
        fit(plain, train, schedule=Schedule(epochs=12, batch_size=64))
        fit(hard, train, loss=adversarial(Linf(0.15), steps=5), schedule=Schedule(epochs=12, batch_size=64))
        for model in (plain, hard):
            model.requires_grad_(False).eval()
        if classes == 10:
            yield Fixture("undefended, 10 classes", plain, x, y, Linf(0.3), classes)
            yield Fixture("undefended, 10 classes", plain, x, y, L2(2.0), classes)
            yield Fixture("undefended, 10 classes", plain, x, y, L1(6.0), classes)
            yield Fixture(HARD, hard, x, y, Linf(0.2), classes)
            yield Fixture(HARD, hard, x, y, L2(1.0), classes)
            yield Fixture(HARD, hard, x, y, L1(2.5), classes)
        else:
            for threat in (Linf(0.3), L2(1.2)):
                yield Fixture(f"trained against PGD, {classes} classes", hard, x, y, threat, classes)


def reference(fixture: Fixture, seed: int) -> dict[str, Callable[[], Tensor]]:
    """Return the reference's ensemble with the published settings, and as it is shipped; empty where there is none."""
    try:
        import torchattacks
    except ImportError:
        return {}
    norm = {"linf": "Linf", "l2": "L2"}.get(fixture.threat.norm)
    if norm is None:
        return {}
    net, x, y = fixture.model, fixture.x, fixture.y
    same = {"norm": norm, "eps": float(fixture.threat.eps), "seed": seed}
    count = {"n_classes": fixture.classes}

    def published() -> Tensor:
        parts = [
            torchattacks.APGD(net, steps=100, loss="ce", **same), torchattacks.APGDT(net, steps=100, **count, **same),
            torchattacks.FAB(net, steps=100, multi_targeted=True, **count, **same),
            torchattacks.Square(net, n_queries=5000, **same),
        ]
        return torchattacks.MultiAttack(parts)(x, y)

    version = importlib.metadata.version("torchattacks")
    return {
        f"torchattacks {version}, published settings": published,
        "the same as shipped (10 steps)": lambda: torchattacks.AutoAttack(net, version="standard", **count, **same)(x, y),
    }


def measure(fixture: Fixture, contender: Callable[[], Tensor]) -> Run:
    """Run a contender once and count."""
    counter, began = Counter(), time.process_time()
    with counter.on(fixture.model):
        z = contender()
    seconds = time.process_time() - began
    assert bool((fixture.threat.distance(z, fixture.x) <= float(fixture.threat.eps) * (1 + 1e-5)).all())
    n = len(fixture.y)
    return Run(fixture.model(z).argmax(1) == fixture.y, counter.forwards / n, counter.backwards / n, seconds)


def contenders(fixture: Fixture) -> dict[str, Callable[[], Tensor]]:
    """Both ensembles of ours, and the reference with two seeds: how far it agrees with itself."""
    model, x, y, threat = fixture.model, fixture.x, fixture.y, fixture.threat
    made = reference(fixture, SEED)
    if made and fixture.name == HARD and threat.norm == "linf":
        made["the same, another seed"] = next(iter(reference(fixture, SEED + 1).values()))
    made["hauberk auto_attack"] = lambda: auto_attack(model, x, y, threat, seed=SEED)
    made["hauberk fast_ensemble"] = lambda: fast_ensemble(model, x, y, threat, seed=SEED)
    return made


def compared(fixture: Fixture) -> tuple[dict[str, dict[str, object]], list[list[str]]]:
    """Run all contenders on one fixture; return the figures by contender and the rows of the table."""
    found: dict[str, dict[str, object]] = {}
    rows, base, n = [], None, len(fixture.y)
    for number, (name, contender) in enumerate(contenders(fixture).items()):
        label = [fixture.name, f"{fixture.threat.norm} {float(fixture.threat.eps):g}", name]
        try:
            run = measure(fixture, contender)
        except (IndexError, RuntimeError, ValueError) as error:
            found[name] = {"crashed": f"{type(error).__name__}: {error}"}
            rows.append([*label, f"crashes: {type(error).__name__}: {str(error).splitlines()[0][:60]}", *["–"] * 5])
            continue
        if number == 0 and name.startswith("torchattacks"):
            base = run
        left = float(run.held.double().mean())
        found[name] = {
            "accuracy_left": left, "forwards": run.forwards, "backwards": run.backwards, "seconds": run.seconds,
        }
        against = ["–", "–", "–"]
        if base is not None:
            alone = int((run.held & ~base.held).sum()), int((base.held & ~run.held).sum())
            agreement, ratio = 1 - sum(alone) / n, run.propagations / base.propagations
            found[name] |= {"agreement": agreement, "broken_by_one_alone": alone, "ratio": ratio}
            against = [f"{agreement:.1%}", f"{alone[0]} / {alone[1]}", f"{ratio:.3f}"]
        rows.append([
            *label, f"{int(run.held.sum())} of {n} ({left:.1%})", *against, f"{run.propagations:.0f}", f"{run.seconds:.2f}",
        ])
        print(rows[-1], flush=True)
    return found, rows


def main() -> None:
    """Run all on every fixture and write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, content = [], {}
    for fixture in fixtures():
        content[f"{fixture.name}, {fixture.threat.norm}"], more = compared(fixture)
        rows += more
    same = [float(str(one["hauberk auto_attack"].get("agreement", "nan"))) for one in content.values()]
    same = [agreement for agreement in same if agreement == agreement]  # where the reference finishes
    notes = [f"Over the fixtures that the reference finishes: the same flag on {sum(same) / len(same):.2%}."] if same else []
    save(
        "auto_attack", "AutoAttack (standard) and a fast ensemble beside the reference", {"fixtures": content},
        [
            "net", "threat", "ensemble", "samples that hold", "same flags as the reference",
            "broken by the reference / this alone", "propagations, ratio to the reference", "propagations per sample", "CPU s",
        ], rows,
        [
            f"n = {N} digits of 8x8 per fixture, one run each, process CPU time, one thread. Propagations are forwards and",
            "backwards per sample, counted by the same hooks on the module. The reference has no L1; where it crashes the",
            "line says so. As shipped it makes 10 steps where 100 are published: flags and ratios are against the published",
            "settings. The line `the same, another seed` is what the reference agrees with itself. On nets this small the",
            "seconds are mostly those of the calls between propagations.", *notes,
            "Made by `make bench`.",
        ],
    )


if __name__ == "__main__":
    main()
