"""A look at the weights and the units: what is broken, silent or out of line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hauberk.core.predictors import ModulePredictor

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
SWITCHES = (nn.ReLU, nn.ReLU6)


@dataclasses.dataclass(frozen=True)
class LayerState:
    """What one linear or convolution layer looks like.

    Arguments:
        name: as the model calls it.
        kind: its class.
        weights: how many it has.
        gain: root mean square of its output over that of its input.
        outlier: how far the unit with the most unusual weight norm stands from the median of its layer, in robust standard
            deviations (1.4826 times the median deviation, at least 5 % of the median).
    """

    name: str
    kind: str
    weights: int
    gain: float
    outlier: float


def non_finite(module: nn.Module) -> int:
    """Return how many weights and buffered values are NaN or infinite."""
    values = [value for value in (*module.parameters(), *module.buffers()) if value.is_floating_point()]
    return sum(int((~value.isfinite()).sum()) for value in values)


def layer_states(module: nn.Module, x: Tensor) -> list[LayerState]:
    """Return the state of every linear and convolution layer, with gains measured on x, shape (n, ...)."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, LAYERS)}
    sums: dict[str, Tensor] = {name: torch.zeros(4, dtype=torch.float64) for name in layers}

    def add(name: str, before: Tensor, after: Tensor) -> None:
        pairs = [(one.double().square().sum().cpu(), one.numel()) for one in (before, after)]
        sums[name] += torch.tensor([value for pair in pairs for value in pair], dtype=torch.float64)

    _watch(module, layers, x, add)
    states = []
    for name, layer in layers.items():
        energy_in, n_in, energy_out, n_out = sums[name].tolist()
        gain = (energy_out / n_out) ** 0.5 / max((energy_in / n_in) ** 0.5, 1e-300) if n_in else float("nan")
        norms = layer.weight.detach().double().flatten(1).norm(dim=1)
        away = (norms - norms.median()).abs()
        scale = torch.maximum(1.4826 * away.median(), 0.05 * norms.median()).clamp(min=1e-300)
        states.append(LayerState(name, type(layer).__name__, layer.weight.numel(), gain, float((away / scale).max())))
    return states


def dead_units(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return for each ReLU module which units no sample of x, shape (n, ...), switches on, shape (units,), bool.

    A channel of a feature map is one unit. Functional ReLUs are not seen.
    """
    fired: dict[str, Tensor] = {}

    def add(name: str, _: Tensor, after: Tensor) -> None:
        alive = (after > 0).transpose(0, 1).flatten(1).any(1).cpu()
        fired[name] = alive | fired.get(name, torch.zeros_like(alive))

    _watch(module, {name: part for name, part in module.named_modules() if isinstance(part, SWITCHES)}, x, add)
    return {name: ~alive for name, alive in fired.items()}


def _watch(
    module: nn.Module, layers: Mapping[str, nn.Module], x: Tensor, add: Callable[[str, Tensor, Tensor], None]
) -> None:
    """Send x through the module in parts, in evaluation mode, and show `add` what enters and leaves the layers."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, inputs, output: add(name, inputs[0].detach(), output.detach())

    ask = ModulePredictor(module)  # which brings x to the module's place and dtype
    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for part in x.split(256):
                ask(part)
    finally:
        for handle in handles:
            handle.remove()
