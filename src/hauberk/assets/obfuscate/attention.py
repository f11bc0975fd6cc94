"""Mixing inside attention, where nothing nonlinear lies: between queries and keys, and between values and the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.assets.obfuscate.draws import Draws


@torch.no_grad()
def turn_heads(module: nn.MultiheadAttention, key: bytes, salt: bytes, name: str) -> bool:
    """Reorder and rotate the heads of an attention layer in place; it computes the same.

    Queries and keys meet in scalar products alone and turn together, by one orthogonal matrix a head; values turn by another,
    which the output projection turns back.

    Returns:
        Whether it was done: layers with keys or values of another width, or with extra rows for keys, are left as they are.
    """
    if module.in_proj_weight is None or module.bias_k is not None:
        return False
    heads, width = module.num_heads, module.head_dim
    draws = Draws(key, salt, f"heads\0{name}")
    order = draws.permutation(heads)
    queries, values = (torch.stack([draws.rotation(width) for _ in range(heads)]) for _ in range(2))
    weight, bias = module.in_proj_weight.double().cpu(), module.in_proj_bias
    parts = weight.view(3, heads, width, -1)[:, order]
    turned = torch.stack([queries @ parts[0], queries @ parts[1], values @ parts[2]])
    module.in_proj_weight.copy_(turned.reshape(weight.shape))
    if bias is not None:
        rows = bias.double().cpu().view(3, heads, width, 1)[:, order]
        module.in_proj_bias.copy_(torch.stack([queries @ rows[0], queries @ rows[1], values @ rows[2]]).reshape(bias.shape))
    out: Tensor = module.out_proj.weight.double().cpu()
    columns = out.view(len(out), heads, width)[:, order]
    module.out_proj.weight.copy_(torch.einsum("ohw,hvw->ohv", columns, values).reshape(out.shape))
    return True
