"""Transfer: examples made on one of four models, sent to the other three; the peers' attacks beside ours, in one run."""

from __future__ import annotations

import importlib.metadata
import itertools
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from harness import save
from hauberk import Linf, Schedule, Split, fit
from hauberk.core.stats import wilson
from hauberk.robustness.attack import (
    admix,
    bim,
    bsr,
    ensemble,
    mdi_fgsm,
    mi_fgsm,
    ni_fgsm,
    pgn,
    si_ni_fgsm,
    sia,
    ti_fgsm,
    vmi_fgsm,
    vni_fgsm,
)

STEPS, SAMPLES = 10, 128
Attack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
ORDER = ("I-FGSM", "MI", "DIM (with MI)", "VMI", "Admix", "SIA", "BSR")


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(functional.relu(self.first(x))))


def zoo() -> dict[str, nn.Module]:
    """Four untrained nets that differ in kind."""
    torch.manual_seed(0)
    return {
        "CNN": nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, 10),
        ),
        "wider CNN": nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.LazyLinear(10),
        ),
        "MLP": nn.Sequential(nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
        "residual net": nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), Residual(16), nn.AvgPool2d(2), Residual(16), nn.Flatten(), nn.LazyLinear(10)
        ),
    }


def moved(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss on images turned, scaled and shifted a little, so that a net knows digits that are not in their place."""
    angle, size = 0.4 * (2 * torch.rand(len(x)) - 1), 0.8 + 0.4 * torch.rand(len(x))
    turn = torch.stack([angle.cos() * size, -angle.sin() * size, angle.sin() * size, angle.cos() * size], 1).view(-1, 2, 2)
    grid = functional.affine_grid(
        torch.cat([turn, 0.25 * (2 * torch.rand(len(x), 2, 1) - 1)], 2), list(x.shape), align_corners=False
    )
    return functional.cross_entropy(model(functional.grid_sample(x, grid, align_corners=False)), y)


def ours() -> dict[str, Attack]:
    """Our attacks at their defaults, for transfer: all steps on all samples."""
    made: dict[str, Callable[..., Tensor]] = {
        "I-FGSM": bim, "MI": mi_fgsm, "NI": ni_fgsm, "DIM (with MI)": mdi_fgsm, "TIM": ti_fgsm, "SI-NI": si_ni_fgsm,
        "VMI": vmi_fgsm, "VNI": vni_fgsm, "Admix": admix, "PGN": pgn, "SIA": sia, "BSR": bsr,
    }
    return {
        name: lambda model, x, y, eps, run=run: run(model, x, y, Linf(eps), steps=STEPS, early_stop=False)
        for name, run in made.items()
    }


def peers() -> dict[str, Attack]:
    """The attacks of torchattacks at the same radius, steps, step size, decay and neighbours; its own defaults otherwise."""
    try:
        import torchattacks
    except ImportError as error:
        print(f"torchattacks is left out: {error}")
        return {}
    known = {
        "I-FGSM": torchattacks.BIM, "MI": torchattacks.MIFGSM, "NI": torchattacks.NIFGSM, "DIM (with MI)": torchattacks.DIFGSM,
        "TIM": torchattacks.TIFGSM, "SI-NI": torchattacks.SINIFGSM, "VMI": torchattacks.VMIFGSM, "VNI": torchattacks.VNIFGSM,
    }

    def made(kind: type, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        torch.manual_seed(0)
        taken = kind.__init__.__code__.co_varnames
        more = {name: value for name, value in {"decay": 1.0, "N": 20}.items() if name in taken}  # as ours: 20 neighbours
        return kind(model, eps=eps, alpha=eps / STEPS, steps=STEPS, **more)(x, y)

    return {name: lambda model, x, y, eps, kind=kind: made(kind, model, x, y, eps) for name, kind in known.items()}


def measured(nets: dict[str, nn.Module], attack: Attack, x: Tensor, y: Tensor, eps: float) -> dict[str, float]:
    """The mean share of examples that fool another net, over all pairs; the share that fools its own; seconds per source."""
    across, own, seconds = [], [], []
    for source, model in nets.items():
        began = time.process_time()
        z = attack(model, x, y, eps).detach()
        seconds.append(time.process_time() - began)
        with torch.no_grad():
            fooled = {name: float((net(z).argmax(1) != y).double().mean()) for name, net in nets.items()}
        own.append(fooled.pop(source))
        across += fooled.values()
    return {"transfer": statistics.mean(across), "own": statistics.mean(own), "seconds": statistics.median(seconds)}


def main() -> None:
    """Train both zoos, run all attacks from every net to the others, write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    small, y = torch.tensor(images / 16).float().reshape(-1, 1, 8, 8)[order], torch.tensor(labels)[order]
    large = functional.pad(functional.interpolate(small, size=16, mode="bilinear"), (4, 4, 4, 4))
    settings = {"8x8": (small, None, 0.15, 12), "24x24, trained on moved images": (large, moved, 0.1, 14)}
    rows, content, notes = [], {}, []
    for setting, (pictures, loss, eps, epochs) in settings.items():
        nets, began = zoo(), time.process_time()
        for net in nets.values():
            net(pictures[:2])
            plan = Schedule(epochs=epochs, batch_size=64)
            fit(net, Split(pictures[:1297], y[:1297]), schedule=plan, **({} if loss is None else {"loss": loss}))
        trained = time.process_time() - began
        test, wanted = pictures[1297:], y[1297:]
        with torch.no_grad():
            answers = {name: net(test).argmax(1) == wanted for name, net in nets.items()}
        right = torch.stack(list(answers.values())).all(0).nonzero()[:SAMPLES, 0]
        x, kept = test[right], wanted[right]
        clean = {name: round(float(one.double().mean()), 3) for name, one in answers.items()}
        print(f"{setting}: four nets in {trained:.0f} CPU s, clean accuracy {clean}")
        found = {("hauberk", name): measured(nets, run, x, kept, eps) for name, run in ours().items()}
        for name, run in peers().items():
            house = "torchattacks " + importlib.metadata.version("torchattacks")
            try:
                found[house, name] = measured(nets, run, x, kept, eps)
            except RuntimeError as error:
                notes.append(f"{setting}: {house} {name} fails: {str(error).splitlines()[0]}")
        held_out = {}
        for name in nets:  # examples made on three nets together, sent to the fourth
            others = ensemble([net for other, net in nets.items() if other != name])
            with torch.no_grad():
                z = mi_fgsm(others, x, kept, Linf(eps), steps=STEPS, early_stop=False)
                held_out[name] = float((nets[name](z).argmax(1) != kept).double().mean())
        found["hauberk", "MI on an ensemble of the other three"] = {
            "transfer": statistics.mean(held_out.values()), "own": float("nan"), "seconds": float("nan")
        }
        for (house, name), row in found.items():
            span = wilson(round(row["transfer"] * len(x)), len(x))
            rows.append([
                setting, house, name, f"{row['transfer']:.3f} [{span.low:.3f}, {span.high:.3f}]",
                "–" if row["own"] != row["own"] else f"{row['own']:.3f}",
                "–" if row["seconds"] != row["seconds"] else f"{row['seconds']:.2f}",
            ])
        ranks = {name: found["hauberk", name]["transfer"] for name in ORDER}
        holds = [f"{one} {'<' if ranks[one] < ranks[two] else '≥'} {two}" for one, two in itertools.pairwise(ORDER)]
        notes.append(f"{setting}, ε = {eps}, n = {len(x)}, clean accuracy {clean}: {'; '.join(holds)}.")
        content[setting] = {
            "eps": eps, "n": len(x), "clean_accuracy": clean, "training_seconds": trained,
            "rates": [{"house": house, "attack": name, **row} for (house, name), row in found.items()],
        }
    save(
        "transfer", f"Transfer between four nets, Linf, {STEPS} steps", content,
        ["images", "implementation", "attack", "fools the other nets, mean [interval]", "fools its own", "CPU s"], rows,
        [
            "Rates over the samples that all four nets get right; the mean over the twelve ordered pairs of nets, with the",
            "Wilson interval of one pair. All attacks have the same radius, steps and length of step. Published for networks on",
            "ImageNet is I-FGSM < MI < DIM < VMI < Admix < SIA ~ BSR; what holds here, from one to the next:",
            "", *(f"- {note}" for note in notes), "",
            "Changes of blocks need images in which an object survives them: a digit of 8 x 8 pixels does not.",
            "Made by `make bench`.",
        ],
    )


if __name__ == "__main__":
    main()
