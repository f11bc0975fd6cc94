"""What the parts of the study of robustness and leakage cost on CIFAR-10, and what each scale comes to: CPU seconds on one core.

Measured are one training step, one of adversarial and one of private training, a pass, and an iteration of the inversion, of each
network at the width of its scale, on random images. What a whole run takes is reckoned from them, and is no measurement.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from harness import save
from hauberk.core.data import Split
from hauberk.core.errors import ModelError
from hauberk.core.threat import Linf
from hauberk.core.train import cross_entropy
from hauberk.privacy.dp import to_group_norm
from hauberk.privacy.inversion import client_update, inverting_gradients
from hauberk.robustness.defend import adversarial
from hauberk.study.defended import BATCH, ROWS, private
from hauberk.study.measuring import PGD_STEPS
from hauberk.study.networks import build
from hauberk.study.settings import HEADLINE, PATH, RADII, Scale, Settings, scale_named

COLUMNS = (
    "network", "scale", "share of channels", "ordinary training", "adversarial", "private", "pass", "inversion, an iteration",
    "whole run, reckoned",
)
NETWORKS = ("resnet18", "preact-resnet18", "wrn-34-10")
IMAGES = 32
ROBUST = len(RADII["colour"]) - 1


def _cpu(work: Callable[[], object]) -> float:
    """Return the least of three runs after one to warm up: neighbours on a shared machine only ever add."""
    work()
    times = []
    for _ in range(3):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def rates(network: str, scale: Scale) -> dict[str, float]:
    """Return CPU seconds for each image and step."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(IMAGES, 3, 32, 32, generator=draw), torch.arange(IMAGES) % 10
    model = build(network, 3, 10, 0, scale.width)
    loss = adversarial(Linf(HEADLINE["colour"]), steps=scale.attack_steps, step_size=PATH["colour"] / scale.attack_steps)
    plain = _cpu(lambda: cross_entropy(model.train(), x, y).backward())
    robust = _cpu(lambda: loss(model.train(), x, y).backward())
    with torch.no_grad():
        passed = _cpu(lambda: model.eval()(x))
    updates = [client_update(model, x[at : at + 1], y[at : at + 1]) for at in range(scale.images)]
    inversion = _cpu(lambda: inverting_gradients(model, updates, steps=2)) / 3
    made = {"plain": plain / len(x), "robust": robust / len(x), "pass": passed / len(x), "inversion": inversion / scale.images}
    if not scale.effects:
        return {**made, "private": 0.0}
    settings = Settings(dataclasses.replace(scale, plain_epochs=1), network, RADII["colour"], HEADLINE["colour"])
    # Accounting costs the same however long the training: the difference of three epochs and of one is two.
    longer = dataclasses.replace(settings, scale=dataclasses.replace(scale, plain_epochs=3 * BATCH // IMAGES))
    times = []
    for one in (settings, longer):
        made_in = []
        while len(made_in) < 2:
            began = time.process_time()
            try:
                private(to_group_norm(build(network, 3, 10, 0, scale.width)), Split(x, y), one, 0)
                made_in.append(time.process_time() - began)
            except ModelError:  # rounding at a kink of ReLU is at times taken for a loss that mixes examples: other images
                x = torch.rand(x.shape, generator=draw)
        times.append(min(made_in))
    return {**made, "private": max(0.0, times[1] - times[0]) / 2 / len(x)}


def whole(scale: Scale, rate: dict[str, float]) -> float:
    """Return the CPU seconds of a run, without reading and writing."""
    invert = scale.images * scale.iterations * rate["inversion"]
    trained = scale.train * (scale.plain_epochs * rate["plain"] + ROBUST * scale.epochs * rate["robust"])
    counted = (ROBUST + 1) * (scale.tested * rate["pass"] + scale.tested // 2 * PGD_STEPS * 3 * rate["pass"])
    inverted = invert * ((ROBUST + 1) * scale.seeds + 2 * (scale.over_epochs - 1))
    if not scale.effects:
        return trained + counted + inverted
    seen = scale.forgets * scale.plain_epochs * (1 + scale.references)
    # Ordinary and smoothed; adversarial; mixed; private, whose batches are four times as large and as many.
    effects = seen * (2 * rate["plain"] + rate["robust"] + rate["plain"] + rate["robust"] + 4 * rate["private"])
    return trained + counted + inverted + effects + counted + len(ROWS) * invert


def main() -> None:
    """Measure, reckon and write the table."""
    rows, content = [], []
    for network in NETWORKS:
        for name in ("smoke", "scaled"):
            scale = scale_named(name, network)
            rate = rates(network, scale)
            seconds = whole(scale, rate)
            content.append({"network": network, "scale": name, "width": scale.width, **rate, "whole": seconds})
            keys = ("plain", "robust", "private", "pass", "inversion")
            shown = [f"{1000 * rate[key]:.2f} ms" if rate[key] else "-" for key in keys]
            told = f"{seconds:.0f} s" if name == "smoke" else f"{seconds / 3600:.1f} h"
            rows.append([network, name, f"1/{1 / scale.width:.0f}", *shown, told])
    notes = ["CPU time for each image, on one core; `full` keeps every channel and is a GPU's."]
    save("study_rates", "What the study costs on CIFAR-10", {"rows": content}, list(COLUMNS), rows, notes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
