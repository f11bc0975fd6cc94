"""Inversion of gradients on MNIST against the stated bars, and the attack under each defence.

Exact recovery from a first linear layer, labels at a batch of one, DLG on a sigmoid LeNet over ten seeds, and inverting gradients
on two SmallCNN: one converged, one trained against an adversary (`leaking_models.py`). Then the latter with every defence, by an
adversary who takes what was sent as plain and by one who knows what was done to it. `bars` or `defences` as an argument runs that
part alone and keeps the other's figures.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import save
from hauberk import Split
from hauberk.core.rng import isolated
from hauberk.core.stats import mean_interval, wilson
from hauberk.privacy.inversion import (
    ClientUpdate,
    Closeness,
    client_update,
    closeness,
    dlg,
    first_linear_layer,
    idlg,
    inverting_gradients,
    label_counts,
)
from hauberk.privacy.inversion.defences import insert_bottleneck
from hauberk.privacy.inversion.metrics import psnr
from hauberk.privacy.inversion.trial import attempt
from leaking_models import images, models

DEFENDED = (
    "", "clip=1", "prune=0.7", "prune=0.95", "top-k=0.95", "soteria=0.5", "gaussian-noise=0.1", "gaussian-noise=1",
    "quantise=0.02", "quantise=0.5", "precode=1", "mixup=1", "private=0.01", "private=0.1",
)
KEPT = Path(__file__).parent / "results" / "gradient_inversion.json"
N, STEPS = 6, 400


def lenet(seed: int) -> nn.Module:
    """Return the network of DLG: three convolutions with sigmoids, weights uniform in [-.5, .5]."""
    with isolated(seed):
        model = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, stride=2, padding=2), nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, padding=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(588, 10),
        )
        for one in model.parameters():
            nn.init.uniform_(one, -0.5, 0.5)
    return model


def exact(x: Tensor, y: Tensor) -> tuple[float, int, int]:
    """Return the largest error of the first layer's recovery, labels read right at a batch of one, and in batches of eight."""
    with isolated(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    worst, right = 0.0, 0
    for k in range(len(x)):
        sent = client_update(model, x[k : k + 1], y[k : k + 1]).gradients
        worst = max(worst, float((first_linear_layer(model, sent).x.reshape(28, 28) - x[k, 0]).square().mean()))
        found = idlg(model, sent).y
        right += int(found is not None and int(found) == int(y[k]))
    batches = 0
    for first in range(0, len(x) - 7, 8):
        labels = y[first : first + 8]
        counted = label_counts(model, client_update(model, x[first : first + 8], labels).gradients, n=8).y
        batches += int(counted is not None and counted.tolist() == labels.sort().values.tolist())
    return worst, right, batches


def told(found: Closeness) -> list[str]:
    """Return PSNR with its interval, SSIM, the mean squared error of the logits, and successes at 20 dB, as cells."""
    ends = mean_interval(found.psnr.numpy())
    rate, n, share = found.success(20.0)
    return [
        f"{float(found.psnr.mean()):.2f} [{ends.low:.1f}, {ends.high:.1f}]", f"{float(found.ssim.mean()):.3f}",
        f"{float(found.fmse.mean()):.1e}", f"{round(rate * n)}/{n} [{share.low:.2f}, {share.high:.2f}]",
    ]


def updates(model: nn.Module, x: Tensor, y: Tensor) -> list[ClientUpdate]:
    """Return what four clients with a sample each send."""
    return [client_update(model, x[k : k + 1], y[k : k + 1]) for k in range(len(x))]


def defended(model: nn.Module, x: Tensor, y: Tensor, aside: Split) -> dict[str, dict[str, list[float]]]:
    """Return the PSNR of each image under each defence, by both adversaries; where knowing adds nothing, by one."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in DEFENDED:
        asked = insert_bottleneck(model, aside) if name.startswith("precode") else model
        group, began = 2 if name.startswith("mixup") else 1, time.process_time()
        told = attempt(asked, x, y, inverting_gradients, defence=name, group=group, options={"steps": STEPS})
        both = [told] if told.naive is None else [told, told.naive]
        found[name or "none"] = {one.adversary: one.close.psnr.tolist() for one in both}
        found[name or "none"]["seconds"] = [time.process_time() - began]
        print(name, found[name or "none"], flush=True)
    return found


def guesses(x: Tensor, others: Tensor) -> dict[str, list[float]]:
    """Return the PSNR of what needs no gradient: the mean of other images, and plain gray."""
    return {
        name: psnr((x.double() - one).square().flatten(1).mean(1)).tolist()
        for name, one in (("mean of other images", others.double().mean(0)), ("plain gray", torch.tensor(0.5)))
    }


def row(name: str, by: dict[str, list[float]]) -> list[str]:
    """Return the cells of a defence: PSNR by both adversaries, the gain, image by image, and who is brought back to 20 dB."""
    def cell(values: Tensor) -> str:
        ends = mean_interval(values.numpy())
        return f"{float(values.mean()):.1f} [{ends.low:.1f}, {ends.high:.1f}]"

    known = {key: torch.tensor(values, dtype=torch.float64) for key, values in by.items() if key != "seconds"}
    if "naive" not in known:
        (only,) = known.values()
        return [name, cell(only), "the same", "–", f"{int((only >= 20).sum())} of {len(only)}"]
    adaptive, naive = known["adaptive"], known["naive"]
    hits = [int((one >= 20).sum()) for one in (naive, adaptive)]
    return [name, cell(naive), cell(adaptive), cell(adaptive - naive), f"{hits[0]} and {hits[1]} of {len(naive)}"]


def bars(x: Tensor, y: Tensor) -> dict[str, Any]:
    """Return the rows that have bars, and the figures behind them."""
    rows: list[list[str]] = []
    content: dict[str, Any] = {}
    worst, right, batches = exact(x, y)
    rows.append(["first linear layer, 64 images", "MSE ≤ 1e-10", f"largest MSE {worst:.1e}"])
    ends = wilson(right, 64)
    rows.append(["label at a batch of one", "100 %", f"{right} of 64 [{ends.low:.3f}, {ends.high:.3f}]"])
    rows.append(["labels of batches of 8, repeated ones among them, untrained", "–", f"{batches} of 8 batches whole"])
    began, hits, peaks = time.process_time(), 0, []
    for seed in range(10):
        model, one = lenet(seed), slice(seed, seed + 1)
        found = dlg(model, client_update(model, x[one], y[one], know_labels=False), seed=seed)
        peaks.append(float(closeness(model, x[one], found).psnr))
        hits += peaks[-1] >= 30
        print("dlg", seed, peaks[-1], flush=True)
    ends = wilson(hits, 10)
    rows.append([
        "DLG, sigmoid LeNet, label unknown, 10 seeds", "≥ 9 of 10 at 30 dB",
        f"{hits} of 10 [{ends.low:.2f}, {ends.high:.2f}], lowest {min(peaks):.1f} dB, {time.process_time() - began:.0f} CPU-s",
    ])
    nets, closest = models(), {}
    for name, bar in (("robust", "≥ 25 dB in ≤ 20 CPU-s"), ("standard", "≤ 15 dB")):
        sent, began = updates(nets[name], x[:4], y[:4]), time.process_time()
        answer = inverting_gradients(nets[name], sent, steps=1200)
        seconds = time.process_time() - began
        closest[name] = closeness(nets[name], x[:4], answer, y=y[:4])
        norms = ", ".join(f"{one:.0e}" for one in closest[name].gradient_norm)
        cells = told(closest[name])
        rows.append([
            f"SmallCNN, {name}, 4 images, 1,200 steps", bar,
            f"{cells[0]} dB, SSIM {cells[1]}, FMSE {cells[2]}, {seconds:.1f} CPU-s; gradient norms {norms}",
        ])
        content[name] = {"psnr": closest[name].psnr.tolist(), "seconds": seconds, "norms": closest[name].gradient_norm.tolist()}
        print(rows[-1], flush=True)
    ratio = float(closest["standard"].fmse.mean() / closest["robust"].fmse.mean())
    rows.append(["FMSE, standard over robust", "≥ 1e3", f"{ratio:.1e}"])
    # What one pass of the four images costs, naively: the sum of their gradients, differentiated twice.
    model = nets["robust"]
    weights = list(model.parameters())
    began = time.process_time()
    for _ in range(50):
        z = x[:4].clone().requires_grad_()
        own = torch.autograd.grad(nn.functional.cross_entropy(model(z), y[:4]), weights, create_graph=True)
        torch.autograd.grad(torch.stack([one.square().sum() for one in own]).sum(), z)
    content["naive_ms"] = (time.process_time() - began) / 50 * 1000
    naive = f"{content['naive_ms']:.1f} ms"
    rows.append(["one gradient of all four together, differentiated twice", "9.6 ms on a quiet machine", naive])
    return {"rows": rows, **content}


def main() -> None:
    """Measure, and write results/gradient_inversion."""
    torch.set_num_threads(1)
    asked = sys.argv[1] if len(sys.argv) > 1 else ""
    x, y = images()[1].take(torch.arange(64))
    content = json.loads(KEPT.read_text(encoding="utf-8")) if asked and KEPT.exists() else {}
    content.pop("machine", None)
    if asked != "defences":
        content.update(bars(x, y))
    if asked != "bars":
        others = images()[0].take(torch.arange(4000))
        content["guesses"] = guesses(x[:N], others[0])
        content["defences"] = defended(models()["robust"], x[:N], y[:N], Split(*others))
    lines = ["", f"## Under a defence (robust SmallCNN, {N} images, {STEPS} steps)", ""]
    columns = ["defence", "naive, dB [95 %]", "adaptive, dB [95 %]", "gain, dB [95 %]", "at 20 dB: naive and adaptive"]
    lines += ["| " + " | ".join(columns) + " |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row(name, by)) + " |" for name, by in content["defences"].items()]
    without = ", ".join(f"{name} {sum(values) / len(values):.1f} dB" for name, values in content["guesses"].items())
    seconds = sum(by["seconds"][0] for by in content["defences"].values())
    save(
        "gradient_inversion", "Inversion of gradients on MNIST", content, ["what", "bar", "measured"], content["rows"],
        [*lines, "", f"Without any gradient: {without}. This table took {seconds:.0f} CPU-s.", "",
         "Mixup blends two images of a client; PRECODE's bottleneck was trained in a model that was trained without it.", "",
         "Seconds are CPU time on a machine that others used too: the naive pass, of the same run, tells its speed.",
         "Made by `benchmarks/gradient_inversion.py`."],
    )


if __name__ == "__main__":
    main()
