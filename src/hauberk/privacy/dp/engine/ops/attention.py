"""Multi-head attention, taken apart into linear layers that have the examples first.

torch's own function works with the positions first and flattens positions and examples into one dimension before its last layer,
where per-example gradients could no longer be told apart.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.privacy.dp.engine.fallback import refuse
from hauberk.privacy.dp.engine.outer import Outer
from hauberk.privacy.dp.engine.per_example import Blocks, Dense
from hauberk.privacy.dp.engine.registry import Gradients, rewrite, treat

if TYPE_CHECKING:
    from hauberk.privacy.dp.engine.intercept import Interceptor


def packed(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The three projections of attention by one weight of shape (3 d, d), concatenated along the positions."""
    biases = bias.chunk(3) if bias is not None else (None, None, None)
    parts = [functional.linear(x, w, b) for x, w, b in zip((query, key, value), weight.chunk(3), biases, strict=True)]
    return torch.cat(parts, 1)


@treat(packed, parameters=("weight", "bias"), data="query")
def packed_gradients(g: Tensor, query: Tensor, key: Tensor, value: Tensor, weight: Tensor, bias: Tensor | None) -> Gradients:
    """Each third of the weight has gradients of its own."""
    third = torch.Size((len(weight) // 3, weight.shape[1]))
    inputs = [x.to(g.dtype) for x in (query, key, value)]
    parts = g.split([x.shape[1] for x in inputs], 1)
    return {
        "weight": lambda: Blocks([Outer([(part, x)], third) for part, x in zip(parts, inputs, strict=True)]),
        "bias": lambda: Dense(torch.cat([part.sum(1) for part in parts], 1)),
    }


@rewrite(functional.multi_head_attention_forward)
def _attention(
    state: Interceptor, query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int,
    in_proj_weight: Tensor | None, in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None,
    add_zero_attn: bool, dropout_p: float, out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True,
    key_padding_mask: Tensor | None = None, need_weights: bool = True, attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False, q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None, static_k: Tensor | None = None, static_v: Tensor | None = None,
    average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The same result as torch's function, for inputs of shape (positions, B, d)."""
    if query.dim() != 3 or static_k is not None or static_v is not None:
        raise refuse(functional.multi_head_attention_forward, "it has no batch, or static keys")
    if state.batch is None:
        state.batch = query.shape[1]
    batch, heads, p = query.shape[1], num_heads, dropout_p if training else 0.0
    same = query is key and key is value
    q, k, v = (x.transpose(0, 1) for x in (query, key, value))  # (B, T, d)
    if use_separate_proj_weight:
        assert q_proj_weight is not None and k_proj_weight is not None and v_proj_weight is not None
        biases = in_proj_bias.chunk(3) if in_proj_bias is not None else (None, None, None)
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
        q, k, v = (functional.linear(x, w, b) for x, w, b in zip((q, k, v), weights, biases, strict=True))
    elif same:
        assert in_proj_weight is not None
        q, k, v = functional.linear(q, in_proj_weight, in_proj_bias).chunk(3, -1)
    else:
        together = state.run(packed, q, k, v, in_proj_weight, in_proj_bias)
        q, k, v = together.split([q.shape[1], k.shape[1], v.shape[1]], 1)
    extra = 0
    if bias_k is not None and bias_v is not None:
        k, v = torch.cat([k, bias_k.expand(batch, 1, -1)], 1), torch.cat([v, bias_v.expand(batch, 1, -1)], 1)
        extra += 1
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, T, d / heads)
    if add_zero_attn:
        k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        extra += 1
    mask = _mask(attn_mask, key_padding_mask, q, extra)
    if need_weights:
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
        attention = functional.dropout(torch.softmax(scores if mask is None else scores + mask, -1), p)
        out = attention @ v
    else:
        attention = None
        out = functional.scaled_dot_product_attention(q, k, v, mask, p)
    out = functional.linear(out.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)  # (B, T, d)
    if attention is not None and average_attn_weights:
        attention = attention.mean(1)
    return out.transpose(0, 1), attention


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, extra: int) -> Tensor | None:
    """Add the two masks up, as numbers, shape (B or 1, heads or 1, T or 1, S)."""
    total = None
    for mask, heads in ((attn_mask, True), (padding, False)):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -math.inf)
        mask = functional.pad(mask.to(q.dtype), (0, extra))
        if not heads:
            mask = mask[:, None, None]
        elif mask.dim() == 3:
            mask = mask.unflatten(0, (q.shape[0], q.shape[1]))
        total = mask if total is None else total + mask
    return total
