"""Models as sets of neurons: a view of the weights that does not depend on the order of a layer's neurons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError

# Of each layer: weights (..., out, in), float64, and biases (..., out). `in` is a multiple of the outputs of the layer before:
# a convolution, or flattening, gives each of them several weights.
Layers = list[tuple[Tensor, Tensor]]


def layers_of(module: nn.Module) -> Layers:
    """Return weights and biases of a model's linear and convolution layers in order of registration.

    Raises:
        ModelError: for a model without such layers, or with one that does not fit the one before: branches have no single order.
    """
    found: Layers = []
    for part in module.modules():
        if not isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d):
            continue
        weight = part.weight.detach().double().flatten(1)
        bias = torch.zeros(len(weight)).to(weight) if part.bias is None else part.bias.detach().double()
        if found and weight.shape[1] % len(found[-1][1]):
            raise ModelError(
                f"a layer of {weight.shape[1]} inputs follows one of {len(found[-1][1])} outputs",
                want="linear and convolution layers, one after the other",
            )
        found.append((weight, bias))
    if not found:
        raise ModelError("the model has no linear or convolution layer", want="at least one")
    return found


def stacked(models: Sequence[Layers]) -> Layers:
    """Return the layers of several models as one, weights (models, out, in). Raises ModelError where their layouts differ."""
    shapes = {tuple(weight.shape for weight, _ in one) for one in models}
    if len(shapes) != 1:
        raise ModelError(f"the models have {len(shapes)} layouts", want="one")
    return [
        (torch.stack([weight for weight, _ in layer]), torch.stack([bias for _, bias in layer]))
        for layer in zip(*models, strict=True)
    ]


def sorted_neurons(module: nn.Module) -> Tensor:
    """Return all weights and biases as one row, shape (parameters,), the same for every order of the hidden neurons.

    The neurons of each hidden layer are sorted by the sum of the weights that enter them, and the next layer's inputs with them
    (Ganju et al. 2018). Sums that tie leave an order; in trained models they do not.
    """
    layers = layers_of(module)
    rows = []
    order: Tensor | None = None
    for index, (weight, bias) in enumerate(layers):
        if order is not None:
            blocks = weight.view(len(weight), len(order), -1)
            weight = blocks[:, order].flatten(1)
        # Summed after sorting, so that the sum, and with it the order, has the same last bit in every order of the inputs.
        order = (weight.sort(1).values.sum(1) + bias).argsort(stable=True) if index < len(layers) - 1 else None
        if order is not None:
            weight, bias = weight[order], bias[order]
        rows += [weight.flatten(), bias]
    return torch.cat(rows)


class DeepSets(nn.Module):
    """A classifier of models whose answer does not depend on the order of hidden neurons (Zaheer et al. 2017; Ganju et al. 2018).

    Each neuron is summarised from its bias and its weights, each weight beside the summary of the neuron it comes from; sums over
    a layer's neurons go on.

    Arguments:
        layers: of the models to judge; their shapes are taken.
        width: of a summary.
    """

    def __init__(self, layers: Layers, *, width: int = 8) -> None:
        super().__init__()
        self.width = width
        parts: list[nn.Module] = []
        before = 0
        for weight, bias in layers:
            each = weight.shape[-1] if not before else weight.shape[-1] // before * (width + 1)
            parts.append(nn.Sequential(nn.Linear(each + 1, 4 * width), nn.ReLU(), nn.Linear(4 * width, width), nn.ReLU()))
            before = bias.shape[-1]
        self.summaries = nn.ModuleList(parts)
        # Of each layer the mean and the largest summary; of the last, whose outputs have an order, every one.
        self.head = nn.Sequential(
            nn.Linear(2 * width * (len(layers) - 1) + width * before, 4 * width), nn.ReLU(), nn.Linear(4 * width, 1)
        )

    def forward(self, layers: Layers) -> Tensor:
        """Return the log-odds of the property, shape (models,), of weights (models, out, in) and biases (models, out)."""
        seen: list[Tensor] = []
        neurons: Tensor | None = None
        for index, ((weight, bias), summary) in enumerate(zip(layers, self.summaries, strict=True)):
            given = weight
            if neurons is not None:
                blocks = weight.unflatten(2, (neurons.shape[1], -1))  # (models, out, before, each)
                carried = torch.einsum("mobe,mbw->moew", blocks, neurons) / neurons.shape[1] ** 0.5
                given = torch.cat([blocks.mean(2), carried.flatten(2)], 2)  # (models, out, each (width + 1))
            neurons = summary(torch.cat([given, bias[..., None]], 2))  # (models, out, width)
            last = index == len(layers) - 1
            seen += [neurons.flatten(1)] if last else [neurons.mean(1), neurons.max(1).values]
        answer: Tensor = self.head(torch.cat(seen, 1))
        return answer[:, 0]
