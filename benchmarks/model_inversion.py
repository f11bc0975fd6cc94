"""Inversion of models, judged by a classifier that took no part in it: faces by MI-FACE, digits by every method, split layers.

Faces need the file orl-faces.npz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import hauberk
from harness import data_folder, save
from hauberk import Schedule, Split, Target, fit
from hauberk.core.image_quality import psnr, ssim
from hauberk.core.kinds import Reconstruction
from hauberk.core.rng import generator, isolated
from hauberk.core.stats import mean_interval
from hauberk.core.train import Loss, cross_entropy
from hauberk.privacy.defence import label_smoothing, mid, with_bottleneck
from hauberk.privacy.model_inversion import (
    GaussianPrior,
    Judgement,
    decoder_inversion,
    deep_inversion,
    feature_inversion,
    federated_gan,
    gmi,
    judge_inversion,
    label_only_inversion,
    mi_face,
    shadow_inversion,
    train_gan,
)
from hauberk.privacy.model_inversion.decoder import features_at

Pair = tuple[Tensor, Tensor]
COPIES = 8  # inversions per class of digits, each from its own start
COLUMNS = [
    "data", "model", "attack", "n", "evaluator: top 1", "top 5", "nearest private sample is of the class", "RMS distance",
    "PSNR, dB", "SSIM", "CPU s",
]


class Standardised(nn.Module):
    """Each image brought to mean 0 and deviation 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, shape (n, ...)."""
        flat = x.flatten(1)
        return ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1e-3)).view_as(x)


def accuracy(model: nn.Module, pair: Pair) -> float:
    """Return the share of labels that are right."""
    with torch.no_grad():
        return float((model(pair[0]).argmax(1) == pair[1]).double().mean())


def row(data: str, model: str, attack: str, judged: Judgement, seconds: float) -> list[str]:
    """Return one line of the table."""
    def share(value: float, low: float, high: float) -> str:
        return f"{value:.0%} [{low:.0%} to {high:.0%}]"

    return [
        data, model, attack, str(judged.n), share(judged.top1, judged.top1_interval.low, judged.top1_interval.high),
        share(judged.top5, judged.top5_interval.low, judged.top5_interval.high), f"{judged.nearest_right:.0%}",
        f"{judged.nearest:.3f}", f"{judged.psnr:.1f}", "" if judged.ssim is None else f"{judged.ssim:.2f}", f"{seconds:.1f}",
    ]


def faces(place: Path) -> tuple[list[list[str]], str]:
    """Train on five photographs of each of forty people, invert every person, ask a net that knows five others of them."""
    held = np.load(place)
    x, y = torch.tensor(held["x"], dtype=torch.float32)[:, None] / 255, torch.tensor(held["y"]).long()
    x, y = functional.avg_pool2d(x, 2), y - y.min()
    number = torch.zeros_like(y)
    for person in y.unique():
        number[y == person] = torch.arange(int((y == person).sum()))
    private, other = (x[number < 5], y[number < 5]), (x[number >= 5], y[number >= 5])
    height, width = x.shape[2:]
    people = torch.arange(int(y.max()) + 1)

    def shaken(images: Tensor) -> Tensor:
        padded = functional.pad(images, (3, 3, 3, 3), mode="replicate")
        down, across = torch.randint(0, 7, (2,)).tolist()
        images = padded[:, :, down : down + height, across : across + width]
        images = images.flip(3) if float(torch.rand(())) < 0.5 else images
        return images + 0.03 * torch.randn_like(images)

    with isolated(1):
        evaluator = nn.Sequential(
            Standardised(), nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * 14 * 12, 160), nn.ReLU(), nn.Linear(160, len(people)),
        )
    fit(
        evaluator, Split(*other), optimizer=torch.optim.Adam(evaluator.parameters(), 1e-3),
        loss=lambda net, a, b: functional.cross_entropy(net(shaken(a)), b, label_smoothing=0.1),
        schedule=Schedule(epochs=60, batch_size=20),
    )
    able = f"evaluator right on {accuracy(evaluator, private):.1%} of the private photographs"
    with isolated(0):
        models = {
            "softmax regression": nn.Sequential(nn.Flatten(), nn.Linear(height * width, len(people))),
            "MLP, 300 sigmoids": nn.Sequential(
                nn.Flatten(), nn.Linear(height * width, 300), nn.Sigmoid(), nn.Linear(300, len(people))
            ),
            "CNN": nn.Sequential(
                nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
                nn.Flatten(), nn.Linear(32 * 14 * 12, 128), nn.ReLU(), nn.Linear(128, len(people)),
            ),
        }
    rows = []
    public = other[0].mean(0)
    losses: dict[str, Loss] = {
        "MLP, label smoothing .2": label_smoothing(amount=0.2), "MLP, label smoothing -.05": label_smoothing(amount=-0.05),
        "MLP, MID, beta .01": mid(beta=0.01), "MLP, MID, beta .1": mid(beta=0.1),
    }
    untrained = models["MLP, 300 sigmoids"]
    models |= {
        name: with_bottleneck(untrained, width=64) if "MID" in name else copy.deepcopy(untrained) for name in losses
    }
    ways: dict[str, dict[str, Any]] = {
        "MI-FACE": {}, "MI-FACE, no total variation": {"tv": 0.0},
        "MI-FACE, from a public mean face": {"start": public, "rate": 0.002},
    }
    for name, model in models.items():
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        fit(
            model, Split(*private), loss=losses.get(name, cross_entropy), optimizer=optimizer,
            schedule=Schedule(epochs=60, batch_size=40),
        )
        told = f"{name} ({accuracy(model, other):.0%} on other photographs)"
        for way, options in ways.items():
            if name in losses and way == "MI-FACE":
                continue
            began = time.process_time()
            found = mi_face(model, people, shape=(1, height, width), **options)
            seconds = time.process_time() - began
            rows.append(row("ORL faces", told, way, judge_inversion(found, evaluator, private), seconds))
            print(rows[-1], flush=True)
    with torch.no_grad():
        mean = Reconstruction(public.expand(len(people), -1, -1, -1), y=people)
    rows.append(row("ORL faces", "none", "the public mean face", judge_inversion(mean, evaluator, private), 0.0))
    return rows, able


def cnn(norm: bool, classes: int, seed: int) -> nn.Sequential:
    """Return an untrained net for 8x8 digits."""
    def normed(channels: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(channels)] if norm else []

    with isolated(seed):
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), *normed(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), *normed(32),
            nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, classes),
        )


def mlp(classes: int, seed: int) -> nn.Sequential:
    """Return an untrained evaluator for 8x8 digits."""
    with isolated(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, classes))


def digits() -> tuple[list[list[str]], list[list[str]], str]:
    """Invert the classes 0 to 4 with priors that only ever saw 5 to 9; and inner features of a split net."""
    data = hauberk.load_data("sklearn:digits")
    x = torch.cat([split.tensors()[0] for split in data.splits().values()])
    y = torch.cat([split.tensors()[1] for split in data.splits().values()])
    order = torch.randperm(len(x), generator=generator(0, "order"))
    x, y = x[order].reshape(-1, 1, 8, 8), y[order]
    low = (y < 5).nonzero()[:, 0]
    private, other = (x[low[:450]], y[low[:450]]), (x[low[450:]], y[low[450:]])
    auxiliary = x[y >= 5]
    model, normed, evaluator = cnn(False, 5, 0), cnn(True, 5, 0), mlp(5, 5)
    for net, pair, epochs in ((model, private, 15), (normed, private, 15), (evaluator, other, 30)):
        fit(net, Split(*pair), schedule=Schedule(epochs=epochs, batch_size=32))
    able = f"evaluator right on {accuracy(evaluator, private):.1%} of the private digits 0 to 4"
    labels = torch.arange(5).repeat(COPIES)
    noise = torch.rand(len(labels), 1, 8, 8, generator=generator(0, "starts"))
    began = time.process_time()
    gan, law = train_gan(auxiliary, hidden=64, steps=600, seed=0), GaussianPrior(auxiliary, width=20)
    trained = time.process_time() - began
    size = sum(one.numel() for one in gan.parameters())
    attacks: dict[str, tuple[str, Callable[[], Reconstruction]]] = {
        "MI-FACE": ("CNN", lambda: mi_face(model, labels, shape=(1, 8, 8), start=noise)),
        "MI-FACE ": ("CNN with batch norm", lambda: mi_face(normed, labels, shape=(1, 8, 8), start=noise)),
        "batch-norm statistics": ("CNN with batch norm", lambda: deep_inversion(normed, labels, shape=(1, 8, 8), statistics=5.0)),
        "GMI, Gaussian prior of 5 to 9": ("CNN", lambda: gmi(model, labels, prior=law)),
        f"GMI, GAN prior of 5 to 9 ({size:,} weights, trained in {trained:.0f} CPU s)": (
            "CNN", lambda: gmi(model, labels, prior=gan)),
        "labels alone, Gaussian prior of 5 to 9": ("CNN", lambda: label_only_inversion(Target(model), labels, prior=law)),
        "labels alone, GAN prior of 5 to 9": ("CNN", lambda: label_only_inversion(Target(model), labels, prior=gan)),
    }
    rows = []
    for name, (called, attack) in attacks.items():
        began = time.process_time()
        found = attack()
        seconds = time.process_time() - began
        rows.append(row("digits", called, name.strip(), judge_inversion(found, evaluator, private), seconds))
        print(rows[-1], flush=True)
    for sends in (False, True):
        began = time.process_time()
        found = federated((x, y), sends)
        whole = mlp(10, 6)
        fit(whole, Split(x[:900], y[:900]), schedule=Schedule(epochs=30, batch_size=32))
        judged = judge_inversion(found, whole, (x, y))
        way = "federated GAN, 30 rounds, " + ("sends what it makes as a 9" if sends else "listens only")
        rows.append(row("digits", "shared by two clients", way, judged, time.process_time() - began))
        print(rows[-1], flush=True)
    return rows, split_layers(x, y), able


def federated(pair: Pair, sends: bool) -> Reconstruction:
    """Return what a client that holds 5 to 9 makes of the 3s of another, which holds 0 to 4, over rounds of averaging."""
    x, y = pair
    sides = [(x[y < 5], y[y < 5]), (x[y >= 5], y[y >= 5])]
    shared = cnn(False, 10, 2)
    poison: list[Tensor] = []

    def rounds() -> Iterator[nn.Module]:
        for number in range(30):
            trained = []
            for client, (images, labels) in enumerate(sides):
                if client == 1 and poison and sends:
                    images, labels = torch.cat([images, poison[-1]]), torch.cat([labels, torch.full((len(poison[-1]),), 9)])
                own = copy.deepcopy(shared)
                fit(own, Split(images, labels), optimizer=torch.optim.SGD(own.parameters(), 0.05, 0.9),
                    schedule=Schedule(epochs=1, batch_size=32, seed=number))
                trained.append(own.state_dict())
            shared.load_state_dict({name: (trained[0][name] + trained[1][name]) / 2 for name in trained[0]})
            yield shared

    return federated_gan(rounds(), 3, shape=(1, 8, 8), send=poison.append, steps=30, images=40)


def split_layers(x: Tensor, y: Tensor) -> list[list[str]]:
    """Return what three attacks win back from features at three depths of a split net."""
    model = cnn(False, 10, 1)
    fit(model, Split(x[:600], y[:600]), schedule=Schedule(epochs=12, batch_size=64))
    truth, auxiliary = x[600:700], (x[1100:], y[1100:])
    rows = []
    for layer, called in (("1", "first convolution"), ("3", "second convolution"), ("6", "hidden layer")):
        features = features_at(model, truth, layer)
        found = {
            "optimisation (Mahendran and Vedaldi)": feature_inversion(
                model, features, layer=layer, shape=(1, 8, 8), bounds=(0, 1)
            ),
            "decoder": decoder_inversion(model, features, layer=layer, auxiliary=auxiliary[0], bounds=(0, 1)),
            "shadow, first part never asked": shadow_inversion(model, features, layer=layer, auxiliary=auxiliary, bounds=(0, 1)),
            "the mean image": Reconstruction(auxiliary[0].mean(0).expand(len(truth), -1, -1, -1)),
        }
        for name, one in found.items():
            error = (one.x - truth).square().flatten(1).mean(1)
            level, alike = mean_interval(psnr(one.x, truth).clamp(max=100).numpy()), mean_interval(ssim(one.x, truth).numpy())
            rows.append([
                called, name, f"{float(error.mean()):.2g}",
                f"{(level.low + level.high) / 2:.1f} [{level.low:.1f} to {level.high:.1f}]",
                f"{(alike.low + alike.high) / 2:.2f} [{alike.low:.2f} to {alike.high:.2f}]",
            ])
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Invert, judge, write the tables."""
    torch.set_num_threads(1)
    place = data_folder("orl-faces.npz") / "orl-faces.npz"
    found, seen = faces(place)
    rows, layers, able = digits()
    told = ["| layer | attack | MSE | PSNR, dB | SSIM |", "|---|---|---|---|---|"]
    told += ["| " + " | ".join(one) + " |" for one in layers]
    save(
        "model_inversion", "Inversion of models, judged by a classifier that took no part in it",
        {"faces": found, "digits": rows, "layers": layers}, COLUMNS, found + rows,
        [
            f"95 % intervals (Wilson). Faces of 56 x 46: five photographs a person behind the model, five behind the {seen}.",
            f"Digits 0 to 4: half behind the model, half behind the {able}; {COPIES} inversions a class. Distances are to",
            "private samples: top 1 alone can be had by an input that only looks right to nets. In the federated rows the",
            "client's own data are 5 to 9, and the class asked for is 3.", "",
            "Features of a split net, 100 images (means, 95 % intervals of Student):", "", *told, "",
            "Made by `benchmarks/model_inversion.py`.",
        ],
    )


if __name__ == "__main__":
    main()
