"""The diagnosis on flawed models and on sound ones: what is caught, what is a false alarm, what it costs; peers beside it."""

from __future__ import annotations

import copy
import importlib.metadata
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness import save
from hauberk import Linf, Schedule, Split, Target, Threat, fit
from hauberk.robustness.attack import pgd
from hauberk.robustness.controls import distilled, flawed, left_in_training
from hauberk.robustness.defend import adversarial, trades
from hauberk.robustness.diagnose import Diagnosis, diagnose
from pgd import digits, small_cnn

EPS, STEPS, HEALED = 0.1, 100, 96
ROUND = Threat("l2", 1.5)


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )


def sound(train: Split) -> dict[str, tuple[nn.Module, Threat]]:
    """Nets without a flaw, and the threat each is held against."""
    linf, made = Linf(EPS), {}

    def plain(name: str, net: nn.Module, epochs: int, threat: Threat, **options: Any) -> None:
        fit(net, train, schedule=Schedule(epochs=epochs, batch_size=64), **options)
        made[name] = (net, threat)

    for seed in (0, 1):
        torch.manual_seed(seed)
        plain(f"CNN, seed {seed}", small_like(seed), 8, linf)
        plain(f"MLP, seed {seed}", seeded(mlp, seed), 10, linf)
        plain(f"adversarially trained, Linf, seed {seed}", small_like(seed), 8, linf, loss=adversarial(linf, steps=3))
    plain("TRADES", small_like(2), 8, linf, loss=trades(linf, steps=3))
    plain("adversarially trained, L2", small_like(3), 8, ROUND, loss=adversarial(ROUND, steps=3))
    plain("CNN with batch normalisation", seeded(with_batch_norm, 0), 6, linf)
    return made


def small_like(seed: int) -> nn.Module:
    """The net of the other benchmarks with weights of another seed."""
    net = small_cnn()
    torch.manual_seed(seed)
    for part in net.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return net


def peers(x: Tensor, y: Tensor) -> dict[str, Callable[[nn.Module], float]]:
    """What other libraries' PGD reports as robust accuracy, by name."""
    made: dict[str, Callable[[nn.Module], float]] = {}

    def left(model: nn.Module, z: Tensor) -> float:
        with torch.no_grad():
            return float((model(z).argmax(1) == y).double().mean())

    try:
        import foolbox

        def with_foolbox(model: nn.Module) -> float:
            attack = foolbox.attacks.LinfPGD(rel_stepsize=0.1, steps=40)
            return left(model, attack.run(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilon=EPS))

        made["foolbox " + importlib.metadata.version("foolbox")] = with_foolbox
    except ImportError as error:
        print(f"foolbox is left out: {error}")
    try:
        import torchattacks

        def with_torchattacks(model: nn.Module) -> float:
            return left(model, torchattacks.PGD(model, eps=EPS, alpha=EPS / 10, steps=40)(x, y))

        made["torchattacks " + importlib.metadata.version("torchattacks")] = with_torchattacks
    except ImportError as error:
        print(f"torchattacks is left out: {error}")
    return made


def five_warnings(model: nn.Module, x: Tensor, y: Tensor) -> list[str]:
    """The published checks of AutoAttack that need no run of its attacks, as its documentation states them."""
    with torch.no_grad():
        answers = [model(x) for _ in range(5)]
    found = []
    spread = max(float((one - answers[0]).flatten(1).norm(dim=1).max()) for one in answers)
    if spread > 1e-4 or any(bool((one.argmax(1) != answers[0].argmax(1)).any()) for one in answers):
        found.append("randomised")
    first = answers[0]
    if float(first.max()) < 1 + 1e-5 and float(first.min()) > -1e-5 and float((first.sum(1) - 1).abs().max()) < 1e-5:
        found.append("softmax output")
    if first.shape[1] < 4:
        found.append("few classes")
    right = first.argmax(1) == y  # a sample that is wrong has no gradient in this loss for reasons of its own
    x, y = x[right], y[right]
    z = x.clone().requires_grad_()
    answer = model(z)
    top = answer.sort(1).values
    own = answer.gather(1, y[:, None])[:, 0]
    other = torch.where(answer.argmax(1) == y, top[:, -2], top[:, -1])
    loss = -(own - other) / (top[:, -1] - top[:, -3] + 1e-12)
    gradient = torch.autograd.grad(loss.sum(), z, materialize_grads=True)[0] if loss.requires_grad else torch.zeros_like(z)
    if bool((gradient.flatten(1) == 0).all(1).any()):
        found.append("zero gradient")
    return found


def reported(run: Callable[[nn.Module], float], model: nn.Module) -> str:
    try:
        return f"{run(copy.deepcopy(model)):.3f}"  # a copy: some leave parts in another mode than they found them in
    except Exception as error:  # a peer that stops where there is no gradient has told something as well
        return f"stops ({type(error).__name__})"


def cost(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def main() -> None:
    """Train, diagnose every model in turn with a PGD-100 beside it, write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    train, test = digits()
    x, y = test.tensors()
    nets = sound(train)
    base = nets["CNN, seed 0"][0]
    taught = distilled(small_like(4), base, train, temperature=100, epochs=6)
    bad = {
        **flawed(base), "defensive distillation": taught,
        "batch normalisation in training mode": left_in_training(nets["CNN with batch normalisation"][0]),
    }
    bare = {**dict.fromkeys(bad, base), "defensive distillation": taught.net}
    bare["batch normalisation in training mode"] = nets["CNN with batch normalisation"][0]
    others, rows, content = peers(x, y), [], {}
    for name, (model, threat) in {**nets, **{key: (net, Linf(EPS)) for key, net in bad.items()}}.items():
        target, found = Target(model), list[Diagnosis]()
        whole = cost(lambda: pgd(target, x, y, threat, steps=STEPS, early_stop=False))  # noqa: B023
        seconds = cost(lambda: found.append(diagnose(model, x, y, threat)))  # noqa: B023
        one = found[0]
        share = (one.queries + one.gradients) / (target.ledger.queries + target.ledger.gradients)
        flaw = name in bad
        after, truth = "", ""
        if flaw:
            few = x[:HEALED], y[:HEALED]
            healed = diagnose(model, *few, threat, remedy=True)
            after = f"{healed.after / healed.n:.3f}"
            z = pgd(bare[name], *few, threat, steps=STEPS, loss="margin")
            truth = f"{float((bare[name](z).argmax(1) == few[1]).double().mean()):.3f}"
        shown = {key: reported(run, model) for key, run in others.items()} if threat.norm == "linf" else {}
        told = five_warnings(model, x, y)
        content[name] = {
            "flawed": flaw, **one.to_dict(), "after_remedy": after, "bare": truth, "propagations_over_pgd100": share,
            "seconds": seconds, "seconds_over_pgd100": seconds / whole, "peers": shown, "warnings_of_autoattack": told,
        }
        rows.append([
            name, "; ".join(alarm.name for alarm in one.raised) or "none", f"{one.before / one.n:.3f}", after, truth,
            f"{share:.2f}", f"{seconds / whole:.2f}", *(shown.get(key, "") for key in others),
            ", ".join(told) or "none",
        ])
        print(rows[-1], flush=True)
    caught = sum(bool(content[name]["alarms"]) and not content[name]["believed"] for name in bad)
    false = sum(not content[name]["believed"] for name in nets)
    costs = [content[name]["propagations_over_pgd100"] for name in content]
    times = [content[name]["seconds_over_pgd100"] for name in content]
    save(
        "diagnose", f"Diagnosis of {len(bad)} flawed and {len(nets)} sound models, Linf, ε = {EPS} (L2: {ROUND.eps})", content,
        [
            "model", "clear signs", "PGD-20 leaves", f"after the remedies (n = {HEALED})", f"bare net, PGD-100 (n = {HEALED})",
            "propagations / PGD-100", "CPU s / PGD-100", *(f"{key} leaves" for key in others), "AutoAttack's warnings",
        ], rows,
        [
            f"Caught: {caught} of {len(bad)} flawed. False alarms: {false} of {len(nets)} sound.",
            "Cost in propagations, forward and backward counted apart, over one PGD-100 that spends every step on every sample:",
            f"median {statistics.median(costs):.2f}, at most {max(costs):.2f}; in CPU seconds, the training of the substitute",
            f"included: median {statistics.median(times):.2f}, at most {max(times):.2f}. n = {len(y)}, digits at 28x28.",
            "The remedies are not part of that cost. Rounded inputs and noise change the net, so that what they hold may",
            "lie below the bare net. Where the graph is cut, PGD-100 has nothing to send back and costs half, and what would",
            "follow gradients is cut short; on the small MLPs a step costs more than the net. The peers run PGD-40",
            "on cross-entropy; the warnings are those that AutoAttack documents and that need no run of its attacks.",
            "Made by `make bench`.",
        ],
    )


if __name__ == "__main__":
    main()
