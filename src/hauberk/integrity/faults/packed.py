"""Packed weights: what quantised layers keep behind an object of their own, taken out as whole numbers and put back."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Packed:
    """The weight of one quantised layer.

    Arguments:
        part: the layer.
        weight: its quantised weight, as it was.
        bias: its bias, or None.
        codes: the whole numbers of the weight, int8: a copy, which `write` packs.
    """

    part: Any
    weight: Tensor
    bias: Tensor | None
    codes: Tensor

    def write(self) -> None:
        """Put the codes, as they stand, into the layer."""
        weight = self.weight
        if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
            made = torch._make_per_channel_quantized_tensor(
                self.codes, weight.q_per_channel_scales(), weight.q_per_channel_zero_points(), weight.q_per_channel_axis()
            )
        else:
            made = torch._make_per_tensor_quantized_tensor(self.codes, weight.q_scale(), weight.q_zero_point())
        self.part.set_weight_bias(made, self.bias)

    def restore(self) -> None:
        """Put the weight back that the layer had."""
        self.part.set_weight_bias(self.weight, self.bias)


def packed_of(part: nn.Module) -> Packed | None:
    """Return the int8 weight that a layer of `torch.ao.nn.quantized` keeps packed; None for every other layer."""
    read, write = getattr(part, "_weight_bias", None), getattr(part, "set_weight_bias", None)
    # The inner object of a linear layer has the same two methods: it is met through the layer.
    if not callable(read) or not callable(write) or not hasattr(part, "_packed_params"):
        return None
    if type(part).__name__ == "LinearPackedParams":
        return None
    weight, bias = read()
    if not isinstance(weight, Tensor) or not weight.is_quantized or weight.dtype is not torch.qint8:
        return None
    return Packed(part, weight, bias, weight.int_repr().contiguous())


def packed_weights(module: nn.Module) -> dict[str, Packed]:
    """Return the packed weights of a model, named as parameters are."""
    found = ((f"{name}.weight" if name else "weight", packed_of(part)) for name, part in module.named_modules())
    return {name: one for name, one in found if one is not None}
