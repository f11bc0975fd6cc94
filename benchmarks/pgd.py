"""PGD-40 (Linf, batch 256, small CNN) against a bare forward/backward loop and against the peers, in one run, on one thread."""

from __future__ import annotations

import importlib.metadata
import time
import warnings
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from harness import alternate, ratios, save
from hauberk import Linf, Schedule, Split, fit
from hauberk.robustness.attack import pgd
from hauberk.robustness.defend import adversarial

EPS, STEPS, BATCH, ROUNDS = 0.15, 40, 256, 15


def digits() -> tuple[Split, Split]:
    """Real digits enlarged to 28x28: 1,541 to train on, 256 to attack."""
    x, y = load_digits(return_X_y=True)
    images = functional.interpolate(torch.tensor(x / 16).float().reshape(-1, 1, 8, 8), size=28, mode="bilinear")
    return Split(images[BATCH:], torch.tensor(y[BATCH:])), Split(images[:BATCH], torch.tensor(y[:BATCH]))


def small_cnn() -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, 10),
    )


def bare_loop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The floor: 40 times forward, backward to the input, step, clamp; nothing is checked, counted or kept."""
    low, high = (x - EPS).clamp(min=0), (x + EPS).clamp(max=1)
    z = x + EPS * (2 * torch.rand_like(x) - 1)
    for _ in range(STEPS):
        z = z.clamp(low, high).requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(z), y, reduction="sum"), z)
        z = z.detach() + 2.5 * EPS / STEPS * gradient.sign()
    return z.clamp(low, high)


def contenders(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Every implementation at the same radius, steps and step size, with a random start."""
    step = 2.5 * EPS / STEPS
    threat = Linf(EPS)
    made: dict[str, Callable[[], Tensor]] = {
        "bare loop": lambda: bare_loop(model, x, y),
        "hauberk, every step on every sample": lambda: pgd(
            model, x, y, threat, steps=STEPS, step_size=step, early_stop=False
        ),
        "hauberk, active set": lambda: pgd(model, x, y, threat, steps=STEPS, step_size=step),
        "hauberk, defaults (active set, falling steps)": lambda: pgd(model, x, y, threat),
    }
    try:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
        attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=STEPS)
        made["foolbox " + importlib.metadata.version("foolbox")] = lambda: attack.run(wrapped, x, y, epsilon=EPS)
    except ImportError as error:
        print(f"foolbox is left out: {error}")
    try:
        import torchattacks

        peer = torchattacks.PGD(model, eps=EPS, alpha=step, steps=STEPS)
        made["torchattacks " + importlib.metadata.version("torchattacks")] = lambda: peer(x, y)
    except ImportError as error:
        print(f"torchattacks is left out: {error}")
    try:
        from art.attacks.evasion import ProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier

        shell = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        descent = ProjectedGradientDescent(
            shell, eps=EPS, eps_step=step, max_iter=STEPS, num_random_init=1, batch_size=BATCH, verbose=False
        )
        arrays = x.numpy(), y.numpy()
        made["ART " + importlib.metadata.version("adversarial-robustness-toolbox")] = lambda: torch.from_numpy(
            descent.generate(*arrays)
        )
    except ImportError as error:
        print(f"ART is left out: {error}")
    return made


def main() -> None:
    """Train a standard and a robust net, run all in turn, write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    train, test = digits()
    x, y = test.tensors()
    rows, content = [], {}
    for name in ("standard", "adversarially trained"):
        model, began = small_cnn(), time.process_time()
        if name == "standard":
            fit(model, train, schedule=Schedule(epochs=10, batch_size=64))
        else:
            fit(model, train, loss=adversarial(Linf(EPS), steps=7), schedule=Schedule(epochs=30, batch_size=64))
        clean = float((model(x).argmax(1) == y).float().mean())
        print(f"{name}: trained in {time.process_time() - began:.0f} CPU s, clean accuracy {clean:.3f}")
        runs = contenders(model, x, y)
        left = {key: float((model(run()).argmax(1) == y).float().mean()) for key, run in runs.items()}
        table = ratios(alternate(runs, rounds=ROUNDS), "bare loop")
        content[name] = {"clean_accuracy": clean, "accuracy_left": left, "times": table}
        for key, row in table.items():
            rows.append([
                name, key, f"{row['seconds']:.3f}", f"{row['ratio']:.2f} [{row['least']:.2f}, {row['greatest']:.2f}]",
                f"{left[key]:.3f}",
            ])
    save(
        "pgd", f"PGD-{STEPS}, Linf, ε = {EPS}, batch {BATCH}, small CNN on 28x28 digits", content,
        ["net", "implementation", "CPU s, median", "ratio to the bare loop, median [least, greatest]", "accuracy left"], rows,
        [
            f"{ROUNDS} rounds, contenders in turn, process CPU time, one thread, n = {BATCH}. The bare loop checks, counts and",
            "keeps nothing. The active set lets samples leave the batch once they are broken; the peers spend every step",
            "on every sample.",
            "Made by `make bench`.",
        ],
    )


if __name__ == "__main__":
    main()
