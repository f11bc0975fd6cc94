"""Peak memory and time of a quick assessment on MNIST: 10,000 test images, 60,000 training images, a CNN trained here.

Needs the file mnist.npz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout).
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import hauberk
from harness import data_folder, save


def folder() -> Path:
    """Return where the real data lies, or end with what to do."""
    return data_folder("mnist.npz")


def build() -> nn.Module:
    """Return an untrained CNN for MNIST."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, 10),
    )


def peak() -> float:
    """Return the peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Load, train, assess, and write what it took."""
    rows = []
    began = time.monotonic()
    data = hauberk.load_data(str(folder() / "mnist.npz"))
    assert data.train is not None
    rows.append(["load", f"{time.monotonic() - began:.1f}", f"{peak():.0f}"])
    began = time.monotonic()
    torch.manual_seed(0)
    model = build()
    hauberk.fit(model, data.train, schedule=hauberk.Schedule(epochs=2, batch_size=128))
    rows.append(["train, 2 epochs", f"{time.monotonic() - began:.1f}", f"{peak():.0f}"])
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        report = hauberk.assess(model, data, hauberk.Linf(0.1), preset="quick", output=place)
        report.to_html(place)
    rows.append(["assess, quick preset, with its report", f"{time.monotonic() - began:.1f}", f"{peak():.0f}"])
    accuracy = report.find("robustness/clean-accuracy")
    counts = ", ".join(f"{count} {status}" for status, count in report.counts().items() if count)
    save(
        "mnist", "A quick assessment on MNIST", {"rows": rows, "counts": report.counts(), "accuracy": accuracy.value},
        ["step", "wall s", "peak resident MB so far"], rows,
        [f"Findings: {counts}. Clean accuracy {accuracy.value:.4f} on n = {accuracy.n}. Made by `benchmarks/mnist.py`."],
    )


if __name__ == "__main__":
    main()
