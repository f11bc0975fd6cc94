"""Inversion of gradients on MNIST against the stated bars, and the attack under each defence.

Exact recovery from a first linear layer, labels at a batch of one, DLG on a sigmoid LeNet over ten seeds, and inverting gradients
on two SmallCNN: one converged, one trained against an adversary (`leaking_models.py`). Then the latter with every defence.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from harness import save
from hauberk.core.rng import generator, isolated
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
from hauberk.privacy.inversion.defences import DEFENCES, mixup, soteria
from leaking_models import images, models

STRENGTHS = {
    "gaussian-noise": (0.1, 1.0), "laplace-noise": (1.0,), "prune": (0.7, 0.95), "top-k": (0.95,), "quantise": (0.02, 0.5),
    "clip": (1.0,), "private": (0.01, 0.1),
}


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


def defended(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> dict[str, Closeness]:
    """Return how close the attack comes under each defence and strength."""
    import dataclasses

    plain, found = updates(model, x, y), {}
    sent: dict[str, list[ClientUpdate]] = {"none": plain}
    for name, strengths in STRENGTHS.items():
        for strength in strengths:
            sent[f"{name} {strength:g}"] = [
                dataclasses.replace(one, gradients=DEFENCES[name][0](one.gradients, strength, generator=generator(k, name)))
                for k, one in enumerate(plain)
            ]
    sent["soteria 0.5"] = [
        dataclasses.replace(one, gradients=soteria(one.gradients, 0.5, module=model, x=x[k : k + 1]))
        for k, one in enumerate(plain)
    ]
    blend, soft = mixup(x, y, 10, generator=generator(0, "mixup"))
    sent["mixup 1"] = updates(model, blend, soft)
    for name, those in sent.items():
        found[name] = closeness(model, x, inverting_gradients(model, those, steps=steps), y=y)
        print(name, told(found[name]), flush=True)
    return found


def main() -> None:
    """Measure, and write results/gradient_inversion."""
    torch.set_num_threads(1)
    x, y = images()[1].take(torch.arange(64))
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
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 600
    table = defended(model, x[:4], y[:4], steps)
    lines = ["", f"## Under a defence (robust SmallCNN, 4 images, {steps} steps)", ""]
    lines += ["| defence and strength | PSNR, dB [95 %] | SSIM | FMSE | at 20 dB [95 %] |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join([name, *told(found)]) + " |" for name, found in table.items()]
    content["defences"] = {name: found.psnr.tolist() for name, found in table.items()}
    save(
        "gradient_inversion", "Inversion of gradients on MNIST", {"rows": rows, **content}, ["what", "bar", "measured"], rows,
        [*lines, "", "Seconds are CPU time on a machine that others used too: the naive pass, of the same run, tells its speed.",
         "Made by `benchmarks/gradient_inversion.py`."],
    )


if __name__ == "__main__":
    main()
