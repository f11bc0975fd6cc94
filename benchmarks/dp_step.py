"""One step of DP-SGD beside one step of SGD: CPU time and memory, ours and the peer's, in one run, on one thread."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness import alternate, ratios, save
from hauberk.privacy.dp.engine import record
from hauberk.privacy.dp.noise import Gaussian, SecureSource, SeededSource, Source

CLIP, NOISE, RATE, ROUNDS = 1.0, 1.0, 0.05, 15
BARS = {"MLP": 1.30, "SmallCNN": 1.50, "SampleConvNet": 1.40, "encoder": 1.30}
STARTS = ("sgd", "hauberk", "hauberk secure", "opacus hooks", "opacus ghost")


class Encoder(nn.Module):
    """Two encoder layers over 64 tokens, classified by their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 128)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))


def mlp() -> tuple[nn.Module, Tensor]:
    """784-512-512-10, batch 256."""
    layers = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    return nn.Sequential(*layers), torch.randn(256, 784)


def small_cnn() -> tuple[nn.Module, Tensor]:
    """The SmallCNN of TRADES without dropout: 312,202 parameters, batch 256 at 28x28."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 200), nn.ReLU(), nn.Linear(200, 200),
        nn.ReLU(), nn.Linear(200, 10),
    ), torch.randn(256, 1, 28, 28)


def sample_conv_net() -> tuple[nn.Module, Tensor]:
    """The net of the peer's MNIST example: 26,010 parameters, batch 256."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(16, 32, 4, 2), nn.ReLU(),
        nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    ), torch.randn(256, 1, 28, 28)


def encoder() -> tuple[nn.Module, Tensor]:
    """d 128, 4 heads, ff 512, 64 tokens, batch 64."""
    return Encoder(), torch.randint(0, 1000, (64, 64))


NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "MLP": mlp, "SmallCNN": small_cnn, "SampleConvNet": sample_conv_net, "encoder": encoder,
}


def sgd(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """The floor: an ordinary step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def hauberk(source: Source) -> Callable[[nn.Module, Tensor, Tensor], Callable[[], None]]:
    """Record, clip flat, add noise from the source, step."""

    def make(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
        optimizer, noise = torch.optim.SGD(model.parameters(), lr=RATE), Gaussian(NOISE)

        def step() -> None:
            optimizer.zero_grad()
            with record(model) as tape:
                loss = functional.cross_entropy(model(x), y)
            tape.backward(loss)
            total = torch.stack(list(tape.norms().values())).norm(dim=0)
            sums = tape.weighted((CLIP / total.clamp(min=1e-6)).clamp(max=1) / len(x))
            tape.release()
            for p, value in sums.items():
                p.grad = noise.add_(value, CLIP / len(x), source)
            optimizer.step()

        return step

    return make


def opacus(mode: str) -> Callable[[nn.Module, Tensor, Tensor], Callable[[], None]]:
    """The peer's step in one of its modes."""

    def make(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
        from opacus.grad_sample.utils import wrap_model
        from opacus.optimizers import DPOptimizer
        from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
        from opacus.validators import ModuleValidator

        model = ModuleValidator.fix(model)  # An attention layer of its own.
        base = torch.optim.SGD(model.parameters(), lr=RATE)
        if mode == "ghost":
            wrapped = wrap_model(
                model, "ghost", batch_first=True, loss_reduction="mean", max_grad_norm=CLIP, use_ghost_clipping=True
            )
            optimizer: Any = DPOptimizerFastGradientClipping(
                base, noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=len(x), loss_reduction="mean"
            )
            criterion: Any = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss(), "mean")
        else:
            wrapped = wrap_model(model, mode, batch_first=True, loss_reduction="mean")
            optimizer = DPOptimizer(base, noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=len(x))
            criterion = nn.CrossEntropyLoss()

        def step() -> None:
            optimizer.zero_grad()
            criterion(wrapped(x), y).backward()
            optimizer.step()

        return step

    return make


def built(net: str, way: str) -> Callable[[], None]:
    """Return a step of one contender on a net of its own."""
    torch.manual_seed(0)
    model, x = NETS[net]()
    y = torch.randint(0, 10, (len(x),))
    if way.startswith("opacus"):
        return opacus(way.split()[1])(model, x, y)
    ways = {"sgd": sgd, "hauberk": hauberk(SeededSource(0)), "hauberk secure": hauberk(SecureSource())}
    return ways[way](model, x, y)


def peak(net: str, way: str) -> float:
    """Megabytes that five steps take over the built model, in a process of their own; the median of three, but for the peer."""
    command = [sys.executable, __file__, "--memory", net, way]
    times = 1 if way.startswith("opacus") else 3
    runs = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(times)]
    return statistics.median(json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else float("nan") for run in runs)


def memory(net: str, way: str) -> None:
    """Print the growth of the process's greatest resident size."""
    torch.set_num_threads(1)
    step = built(net, way)
    small = torch.randn(64, 64) @ torch.randn(64, 64)  # The library of matrix products sets its own memory up first.
    functional.conv2d(small.view(1, 1, 64, 64), small[:3, :3].reshape(1, 1, 3, 3))
    before = _peak()
    for _ in range(5):
        step()
    print(json.dumps((_peak() - before) / 1024))


def _peak() -> int:
    """Kilobytes; the figure of getrusage would begin at the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def main() -> None:
    """Run all in turn, write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", nargs=2)
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    parser.add_argument("--ways", nargs="*", default=list(STARTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry", action="store_true", help="print, write nothing, measure no memory")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    if chosen.memory:
        return memory(*chosen.memory)
    torch.set_num_threads(1)
    rows, content = [], {}
    for net in chosen.nets:
        steps = {}
        for way in chosen.ways:
            try:
                steps[way] = built(net, way)
                steps[way]()
            except (ImportError, TypeError, NotImplementedError, ValueError) as error:
                steps.pop(way, None)
                print(f"{way} is left out for {net}: {error}")
        table = ratios(alternate(steps, rounds=chosen.rounds, warm_up=2), "sgd")
        for way, row in table.items():
            row["megabytes"] = float("nan") if chosen.dry else peak(net, way)
            spread = f"{row['ratio']:.2f} [{row['least']:.2f}, {row['greatest']:.2f}]"
            bar = f"{BARS[net]:.2f}" if way.startswith("hauberk") else ""
            rows.append([net, way, f"{1e3 * row['seconds']:.1f}", spread, bar, f"{row['megabytes']:.0f}"])
            if chosen.dry:
                print(*rows[-1])
        content[net] = table
    if not chosen.dry:
        save(
            "dp_step", "A step of DP-SGD (flat clipping, Gaussian noise) beside a step of SGD", content,
            ["net", "step", "CPU ms, median", "ratio to SGD, median [least, greatest]", "bar", "peak MB over the built model"],
            rows,
            [
                f"{chosen.rounds} rounds, contenders in turn, process CPU time, one thread. `hauberk` draws its noise as the",
                "peer does, by torch; `hauberk secure` is the default: a cryptographic generator, on a grid.",
                "Memory: growth of the greatest resident size over five steps, in processes of their own; the median of three,",
                "but of one for the peer.",
                "The MLP misses its bar: the noise alone (0.67 million numbers by torch) takes a fifth of an SGD step,",
                "calls of Python a tenth.",
                "Made by `make bench`.",
            ],
        )
    return None


if __name__ == "__main__":
    main()
