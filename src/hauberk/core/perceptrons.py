"""Stacked training of plain perceptrons, the commonest architecture on tables: products written into buffers that stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from hauberk.core.stacked import Batch


Whole = NDArray[np.int32]
SPARSE = 0.2  # share of inputs that are not zero, below which sums of rows are quicker than products


def plain(model: nn.Module) -> bool:
    """Whether a model is linear layers with ReLU between them, and nothing else: only then is the backward pass here its own."""
    if type(model) is not nn.Sequential:
        return False
    parts = [one for one in model if type(one) is not nn.Flatten]
    flat = all(type(one) is not nn.Flatten or (place == 0 and one.start_dim == 1 and one.end_dim == -1)
               for place, one in enumerate(model))
    between, layers = parts[1::2], [one for one in parts[::2] if type(one) is nn.Linear]
    linear = len(layers) == len(parts[::2]) and all(
        one.bias is not None and one.weight.dtype is torch.float32 for one in layers
    )
    hooked = any(one._forward_hooks or one._forward_pre_hooks or one._backward_hooks for one in (model, *parts))
    trained = all(one.requires_grad for one in model.parameters())
    wide = bool(layers) and layers[-1].out_features > 1  # one column is a logit of class 1: another loss
    return (
        flat and linear and wide and trained and not hooked and len(parts) % 2 == 1
        and all(type(one) is nn.ReLU for one in between)
    )


def stack(models: Sequence[nn.Module], x: Tensor, sparse: Sparse | None = None) -> Stacked | None:
    """Return the models stacked, or None where they are no plain perceptrons on the CPU that take x; `sparse` is x again."""
    if not all(plain(one) for one in models) or x.device.type != "cpu" or x.dtype is not torch.float32:
        return None
    first = next(one for one in models[0].modules() if isinstance(one, nn.Linear))
    flattened = isinstance(next(iter(models[0].children())), nn.Flatten)
    fits = first.in_features == x[0].numel() and (x.dim() == 2 or flattened)
    return Stacked(models, x.flatten(1), sparse) if fits and first.weight.device.type == "cpu" else None


class Sparse:
    """Records of zeros and ones, most of them zeros: a product with weights is a sum of the weights' rows.

    Arguments:
        x: shape (n, features).
    """

    def __init__(self, x: Tensor) -> None:
        places = x.nonzero().numpy().astype(np.int32)
        self.columns = np.ascontiguousarray(places[:, 1])
        self.counts = np.bincount(places[:, 0], minlength=len(x)).astype(np.int32)
        self.starts = np.cumsum(self.counts, dtype=np.int32) - self.counts

    @staticmethod
    def of(x: Tensor) -> Sparse | None:
        """Return x as such records, or None where it holds others."""
        flat = x.flatten(1)
        return Sparse(flat) if x.device.type == "cpu" and Sparse.fits(flat) else None

    @staticmethod
    def fits(x: Tensor) -> bool:
        """Whether x is such."""
        return x.numel() < 2**31 and bool(((x == 0) | (x == 1)).all()) and float(x.mean()) < SPARSE

    def pick(self, rows: Tensor, features: int) -> Picked:
        """Return the records at `rows`, shape (k, b), one row of them for each of k models."""
        k, b = rows.shape
        flat = rows.numpy().ravel()
        counts = self.counts[flat]
        first = np.cumsum(counts, dtype=np.int32) - counts
        record = np.repeat(np.arange(k * b, dtype=np.int32), counts)
        # Where each record's ones begin in `columns`, less where they begin here.
        at = (self.starts[flat] - first).take(record)
        at += np.arange(len(record), dtype=np.int32)
        places = self.columns.take(at)
        places += record // b * features
        return Picked(places, first, record, (k, b, features))


class Picked:
    """Some records of each of k models: the places of their ones among k x features, and where each record's begin.

    All whole numbers are short (32 bits): these lists are made anew at every step, and are as costly as the sums themselves.
    """

    def __init__(self, places: Whole, first: Whole, record: Whole, size: tuple[int, int, int]) -> None:
        self.places, self.first, self.record, self.size = places, first, record, size

    def product(self, weight: Tensor) -> Tensor:
        """Return x @ weight for weight (k, features, out), shape (k, b, out)."""
        k, b, features = self.size
        return _sums(weight.view(k * features, -1), self.places, self.first).view(k, b, -1)

    def transposed(self, push: Tensor) -> Tensor:
        """Return x^T @ push for push (k, b, out), shape (k, features, out)."""
        k, b, features = self.size
        # Shorter still, they are sorted by their digits, in linear time.
        order = np.argsort(self.places.astype(np.uint16) if k * features < 2**16 else self.places, kind="stable")
        counts = np.bincount(self.places, minlength=k * features)
        first = (np.cumsum(counts) - counts).astype(np.int32)
        return _sums(push.reshape(k * b, -1), self.record.take(order), first).view(k, features, -1)


def _sums(table: Tensor, rows: Whole, first: Whole) -> Tensor:
    """Return for each bag the sum of its rows of the table; a bag begins where `first` says."""
    return functional.embedding_bag(torch.from_numpy(rows), table, torch.from_numpy(first), mode="sum")


class Stacked:
    """k perceptrons with their weights side by side, (k, in, out), and gradients in buffers of the same layout.

    Buffers are written over at each step: weights and gradients of a few hundred kilobytes each would otherwise be allocated,
    and paged in, anew at every one.
    """

    def __init__(self, models: Sequence[nn.Module], x: Tensor, sparse: Sparse | None = None) -> None:
        self.x, self.sparse = x, sparse
        self.layers = [[one for one in model.modules() if isinstance(one, nn.Linear)] for model in models]
        depth = len(self.layers[0])
        self.weights = [torch.stack([own[i].weight.detach().T for own in self.layers]).contiguous() for i in range(depth)]
        self.biases = [torch.stack([own[i].bias.detach()[None] for own in self.layers]) for i in range(depth)]
        self.parameters = [one for pair in zip(self.weights, self.biases, strict=True) for one in pair]
        for one in self.parameters:
            one.grad = torch.empty_like(one)
        for own in (one for model in models for one in model.parameters()):
            own.grad = None

    def backward(self, batch: Batch) -> None:
        """Leave the gradient of each model's mean loss."""
        k, b = batch.y.shape
        picked = None if self.sparse is None else self.sparse.pick(batch.rows, self.weights[0].shape[1])
        inputs = [self.x[batch.rows] if picked is None else self.x[:0]]
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if picked is not None and not layer:
                inputs.append(picked.product(weight).add_(bias))  # (k, b, out)
            else:
                inputs.append(torch.baddbmm(bias, inputs[-1], weight))
            if layer + 1 < len(self.weights):
                inputs[-1].relu_()
        # The gradient of cross-entropy towards the logits: scores less the label's one.
        push = inputs.pop().softmax(-1)
        push.scatter_add_(2, batch.y[..., None], push.new_full((k, b, 1), -1.0))
        push.mul_(batch.weights[..., None])
        for layer in reversed(range(len(self.weights))):
            weight, bias, x = self.weights[layer], self.biases[layer], inputs[layer]
            assert weight.grad is not None and bias.grad is not None
            if picked is not None and not layer:
                weight.grad = picked.transposed(push)
            else:
                torch.bmm(x.transpose(1, 2), push, out=weight.grad)
            torch.sum(push, 1, keepdim=True, out=bias.grad)
            if layer:
                push = torch.bmm(push, weight.transpose(1, 2)).mul_(x.sign_())  # x is what a ReLU let through

    def give_back(self) -> None:
        """Write the weights into the models they came from."""
        with torch.no_grad():
            for k, own in enumerate(self.layers):
                for layer, weight, bias in zip(own, self.weights, self.biases, strict=True):
                    layer.weight.copy_(weight[k].T)
                    layer.bias.copy_(bias[k, 0])
