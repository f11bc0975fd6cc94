"""Embeddings: outer products of one-hot tokens and output gradients."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from hauberk.core.errors import ModelError
from hauberk.privacy.dp.engine.outer import Outer
from hauberk.privacy.dp.engine.registry import Gradients, treat


@treat(functional.embedding, parameters=("weight",), positions=True)
def embedding(
    g: Tensor, input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Gradients:
    """Rows of a table; the padding row has no gradient."""
    if max_norm is not None or scale_grad_by_freq:
        raise ModelError(
            "an Embedding renormalises its rows (max_norm) or scales by frequency in the batch (scale_grad_by_freq)",
            want="a layer that leaves parameters alone and examples apart", fix="Build the Embedding without these options.",
        )
    positions = input.shape[1:].numel()
    right = g.reshape(len(g), positions, g.shape[-1])
    tokens = input.reshape(len(g), positions)
    if padding_idx is not None:
        right = right.masked_fill((tokens == padding_idx % len(weight)).unsqueeze(2), 0)
    return {"weight": lambda: Outer([(tokens, right)], weight.shape)}
