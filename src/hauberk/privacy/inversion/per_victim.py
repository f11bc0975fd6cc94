"""The gradients of several victims at once, and the way back from a distance between gradients to their inputs.

The victims' samples go through the network as one batch. What entered each layer and what flows back out of it give every
victim's own weight gradient by one grouped convolution, and the slope of the distance by two more, so that no part of the
network is run once per victim, and nothing but the input gradient is differentiated twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from hauberk.privacy.inversion.lean_convolution import Layout, LeanConvolutions, convolve, slopes_of

Products = tuple[Tensor, Tensor, Tensor]  # (victims, parameters): the gradient by itself, by the target, and the target by itself


@dataclasses.dataclass
class Layer:
    """A layer's part in one pass: what entered, a, and the slope of the loss at what left, g, both (victims * n, ...)."""

    name: str
    part: nn.Module
    a: Tensor
    z: Tensor
    g: Tensor | None = None

    def key(self, kind: str) -> str:
        """Name of its weight or bias."""
        return f"{self.name}.{kind}" if self.name else kind


class PerVictim:
    """Products of the victims' gradients with their targets, and the slopes that they stand for.

    Arguments:
        module: the model, in the mode to be differentiated in.
        targets: by parameter name, shape (victims, *parameter).
        n: samples of each victim.
        rates: what each victim's gradient is multiplied by, shape (victims,).
        kept: by parameter name, shape of the target: 1 where an entry counts, 0 where it is left out.
    """

    def __init__(
        self, module: nn.Module, targets: Mapping[str, Tensor], n: int, rates: Tensor, kept: Mapping[str, Tensor] | None = None
    ) -> None:
        self.module, self.targets, self.n, self.kept = module, dict(targets), n, dict(kept or {})
        self.weights = (rates / n).repeat_interleave(n)
        self.victims = len(next(iter(self.targets.values())))
        self.given = {name: one.detach() for name, one in (*module.named_parameters(), *module.named_buffers())}
        parts = dict(module.named_modules())
        owners = {name.rpartition(".")[0] for name in self.targets}
        self.parts = {name: parts[name] for name in owners}
        self.sizes = {name: one.flatten(1).square().sum(1) for name, one in self.targets.items()}

    def supports(self) -> bool:
        """Whether every parameter belongs to a layer whose gradient per victim is known here, and to no other."""
        used = [id(one) for _, one in self.module.named_parameters(remove_duplicate=False)]
        return len(used) == len(set(used)) and all(_known(part) for part in self.parts.values())

    @torch.no_grad()
    def first(self, layers: list[Layer]) -> dict[str, Tensor] | None:
        """Return the first victim's gradients by parameter name; None where the layers' rows are not the victims' samples."""
        names, rows = sorted(layer.name for layer in layers), self.victims * self.n
        if names != sorted(self.parts) or any(len(layer.a) != rows or len(layer.z) != rows for layer in layers):
            return None
        alone = PerVictim(self.module, {name: one[:1] for name, one in self.targets.items()}, self.n, self.weights[:1] * self.n)
        made = {}
        for layer in layers:
            assert layer.g is not None
            mine = dataclasses.replace(layer, a=layer.a[: self.n], g=layer.g[: self.n])
            for kind, gradient in (("weight", alone._weight), ("bias", alone._bias)):
                if layer.key(kind) in self.targets:
                    made[layer.key(kind)] = gradient(mine)[0]
        return made

    def run(self, x: Tensor, y: Tensor) -> list[Layer]:
        """Return the layers' parts in the loss of x, (victims * n, ...), with labels or class probabilities y."""
        layers: list[Layer] = []

        def keep(name: str) -> object:
            def hook(part: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], z: Tensor) -> Tensor:
                layers.append(Layer(name, part, inputs[0] if inputs else named["input"], z))
                return z.clone()  # what follows may write into it

            return hook

        handles = [part.register_forward_hook(keep(name), with_kwargs=True) for name, part in self.parts.items()]
        try:
            with LeanConvolutions():
                losses = functional.cross_entropy(functional_call(self.module, self.given, (x,)), y, reduction="none")
        finally:
            for handle in handles:
                handle.remove()
        if not all(layer.z.requires_grad for layer in layers):  # one that no input reaches
            return []
        loss = losses @ self.weights
        flows = torch.autograd.grad(loss, [layer.z for layer in layers], create_graph=True, materialize_grads=True)
        for layer, flow in zip(layers, flows, strict=True):
            layer.g = flow
        return layers

    @torch.no_grad()
    def products(self, layers: list[Layer]) -> tuple[Products, dict[str, Tensor]]:
        """Return the products by parameter, in the order of the targets, and the gradients that had to be made for them."""
        own: dict[str, Tensor] = {}
        made: dict[str, tuple[Tensor, Tensor]] = {}
        for layer in layers:
            a, g = layer.a, layer.g
            assert g is not None
            for kind in ("weight", "bias"):
                key = layer.key(kind)
                if key not in self.targets:
                    continue
                target = self.targets[key]
                if kind == "weight" and isinstance(layer.part, nn.Linear) and a.ndim == 2 and key not in self.kept:
                    # (g a')·(g a') and (g a')·T from their factors: the outer product is never written down.
                    left, right = self._split(g), self._split(a)
                    own_product = (left @ left.mT * (right @ right.mT)).sum((1, 2))
                    made[key] = (own_product, (left * (right @ target.mT)).sum((1, 2)))
                    continue
                own[key] = self._weight(layer) if kind == "weight" else self._bias(layer)
                if key in self.kept:
                    own[key] = own[key] * self.kept[key]  # and so do the slopes leave out what the target lacks, and this
                flat = own[key].flatten(1)
                made[key] = (flat.square().sum(1), (flat * target.flatten(1)).sum(1))
        zero = next(iter(self.sizes.values())).new_zeros(self.victims)
        rows = [made.get(key, (zero, zero)) for key in self.targets]
        found = tuple(torch.stack([row[k] for row in rows], 1) for k in (0, 1))
        return (found[0], found[1], torch.stack(list(self.sizes.values()), 1)), own

    @torch.no_grad()
    def pull(self, layers: list[Layer], own: dict[str, Tensor], by_own: Tensor, by_target: Tensor) -> list[Tensor]:
        """Return the slopes at every layer's a and g, in turn, from those by the products, both (victims, parameters)."""
        pulls: list[Tensor] = []
        order = {key: k for k, key in enumerate(self.targets)}
        for layer in layers:
            a, g = layer.a, layer.g
            assert g is not None
            at_a, at_g = torch.zeros_like(a), torch.zeros_like(g)
            key = layer.key("weight")
            if key in self.targets:
                alpha, beta = 2 * by_own[:, order[key]], by_target[:, order[key]]
                if key in own:
                    slope = own[key] * _wide(alpha, own[key]) + self.targets[key] * _wide(beta, own[key])
                    at_a, at_g = self._weight_pull(layer, slope)
                else:
                    left, right, target = self._split(g), self._split(a), self.targets[key]
                    alpha, beta = alpha[:, None, None], beta[:, None, None]
                    at_g = (alpha * (right @ right.mT @ left) + beta * (right @ target.mT)).flatten(0, 1)
                    at_a = (alpha * (left @ left.mT @ right) + beta * (left @ target)).flatten(0, 1)
            key = layer.key("bias")
            if key in self.targets:
                slope = own[key] * 2 * by_own[:, order[key], None] + self.targets[key] * by_target[:, order[key], None]
                rows = slope.repeat_interleave(self.n, 0)  # (victims * n, channels)
                axis = -1 if isinstance(layer.part, nn.Linear) else 1
                at_g = at_g + rows.reshape(len(rows), *(-1 if k == axis % g.ndim else 1 for k in range(1, g.ndim)))
            pulls += [at_a, at_g]
        return pulls

    def _split(self, rows: Tensor) -> Tensor:
        return rows.reshape(self.victims, self.n, -1)

    def _side(self, rows: Tensor) -> Tensor:
        """Return (n, victims * channels, ...): one group of channels per victim."""
        if self.n == 1:
            return rows.reshape(1, -1, *rows.shape[2:])
        apart = rows.reshape(self.victims, self.n, *rows.shape[1:]).transpose(0, 1)
        return apart.reshape(self.n, -1, *rows.shape[2:])

    def _back(self, side: Tensor, like: Tensor) -> Tensor:
        if self.n == 1:
            return side.reshape(like.shape)
        apart = side.reshape(self.n, self.victims, *like.shape[1:]).transpose(0, 1)
        return apart.reshape(like.shape)

    def _weight(self, layer: Layer) -> Tensor:
        a, g, part, target = layer.a, layer.g, layer.part, self.targets[layer.key("weight")]
        assert g is not None
        if isinstance(part, nn.Linear):
            return g.reshape(self.victims, -1, g.shape[-1]).mT @ a.reshape(self.victims, -1, a.shape[-1])
        if isinstance(part, _BatchNorm):
            return self._split((g * _normal(part, a)).flatten(2).sum(2) if a.ndim > 2 else g * _normal(part, a)).sum(1)
        made = slopes_of(self._side(g), self._side(a), target.flatten(0, 1), self._layout(part), at_input=False)
        return made.reshape(target.shape)

    def _bias(self, layer: Layer) -> Tensor:
        g = layer.g
        assert g is not None
        if isinstance(layer.part, nn.Linear):
            return g.reshape(self.victims, -1, g.shape[-1]).sum(1)
        return self._split(g.flatten(2).sum(2) if g.ndim > 2 else g).sum(1)

    def _weight_pull(self, layer: Layer, slope: Tensor) -> tuple[Tensor, Tensor]:
        a, g, part = layer.a, layer.g, layer.part
        assert g is not None
        if isinstance(part, nn.Linear):
            rows, flows = a.reshape(self.victims, -1, a.shape[-1]), g.reshape(self.victims, -1, g.shape[-1])
            return (flows @ slope).reshape(a.shape), (rows @ slope.mT).reshape(g.shape)
        if isinstance(part, _BatchNorm):
            wide = slope.repeat_interleave(self.n, 0).reshape(len(a), -1, *(1 for _ in a.shape[2:]))
            rate = _normal(part, torch.ones_like(a)) - _normal(part, torch.zeros_like(a))
            return g * wide * rate, wide * _normal(part, a)
        side_a, weights = self._side(a), slope.flatten(0, 1)
        layout = self._layout(part)
        at_a = slopes_of(self._side(g), side_a, weights, layout, at_input=True)
        return self._back(at_a, a), self._back(convolve(side_a, weights, None, layout), g)

    def _layout(self, part: nn.Module) -> Layout:
        assert isinstance(part, _ConvNd)
        return part.stride, part.padding, part.dilation, part.groups * self.victims


def _known(part: nn.Module) -> bool:
    if isinstance(part, _ConvNd):
        return not part.transposed and part.padding_mode == "zeros" and not isinstance(part.padding, str)
    if isinstance(part, _BatchNorm):  # with the statistics of the batch the victims would not be apart
        return not part.training and part.running_mean is not None
    return isinstance(part, nn.Linear)


def _normal(part: _BatchNorm, a: Tensor) -> Tensor:
    return functional.batch_norm(a, part.running_mean, part.running_var, eps=part.eps)


def _wide(one: Tensor, like: Tensor) -> Tensor:
    return one.reshape(-1, *(1 for _ in like.shape[1:]))
