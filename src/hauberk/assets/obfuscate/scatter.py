"""Structure obfuscation of torch modules: another graph of other layers that computes the same."""

from __future__ import annotations

import copy
import secrets

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fusion
from torch.nn.utils.parametrize import is_parametrized

from hauberk.assets.obfuscate.fx_reader import traced
from hauberk.assets.obfuscate.preserve import gap
from hauberk.assets.obfuscate.rename import rename_module
from hauberk.core.errors import ModelError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def scatter(module: nn.Module, example: Tensor, *, smallest: int = 8) -> fx.GraphModule:
    """Return a module with its norms folded away, its layers split in unequal parts, and all names gone.

    Batch norms vanish into the layers before them; each convolution and linear layer of `smallest` outputs or more becomes two,
    whose answers are joined. The graph no longer matches that of the known architecture it came from. Answers move by rounding.

    Arguments:
        module: taken in evaluation mode; not changed.
        example: a batch of inputs, (n, ...).
        smallest: layers with fewer outputs stay whole.

    Raises:
        ModelError: for a module that cannot be traced, or whose answers moved by more than 1e-3 of the largest.
    """
    graph = traced(module, example)
    _fold_norms(graph)
    uses: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and uses[str(node.target)] == 1:
            _split(graph, node, smallest)
    graph.graph.lint()
    graph.recompile()
    made = rename_module(graph, example)
    difference = gap(module, made, example)
    if not difference <= 1e-3:
        raise ModelError(f"the answers moved by {difference:.3g} of the largest", want="a module that computes the same twice",
                         fix="Rename or lock it instead")
    return made


def _fold_norms(graph: fx.GraphModule) -> None:
    modules = dict(graph.named_modules())
    used: dict[int, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            used[id(modules[str(node.target)])] = used.get(id(modules[str(node.target)]), 0) + 1
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            continue
        norm, before = modules[str(node.target)], node.args[0]
        if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) or norm.running_var is None:
            continue
        if before.op != "call_module" or len(before.users) != 1 or used[id(modules[str(before.target)])] != 1:
            continue
        layer = modules[str(before.target)]
        if is_parametrized(layer) or is_parametrized(norm):
            continue
        folded: nn.Module
        if isinstance(layer, _CONVOLUTIONS):
            folded = fusion.fuse_conv_bn_eval(layer, norm)
        elif isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d) and len(before.meta["tensor_meta"].shape) == 2:
            folded = fusion.fuse_linear_bn_eval(layer, norm)
        else:
            continue
        graph.set_submodule(str(before.target), folded)
        modules[str(before.target)] = folded
        node.replace_all_uses_with(before)
        graph.graph.erase_node(node)


def _split(graph: fx.GraphModule, node: fx.Node, smallest: int) -> None:
    layer = graph.get_submodule(str(node.target))
    if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) or getattr(layer, "groups", 1) != 1 or is_parametrized(layer):
        return
    total = len(layer.weight)
    if total < max(smallest, 4):  # fewer leave a part empty
        return
    cut = total // 4 + secrets.randbelow(total // 2)
    with graph.graph.inserting_after(node):
        joined = graph.graph.call_function(torch.cat, ([], -1 if isinstance(layer, nn.Linear) else 1))
    node.replace_all_uses_with(joined)
    pieces = []
    for at, part in enumerate((slice(0, cut), slice(cut, total))):
        name = f"part{at}_{str(node.target).replace('.', '_')}"
        graph.add_submodule(name, _piece(layer, part))
        with graph.graph.inserting_before(joined):
            pieces.append(graph.graph.call_module(name, node.args, node.kwargs))
    joined.args = (pieces, joined.args[1])
    graph.graph.erase_node(node)
    joined.meta, pieces[0].meta, pieces[1].meta = dict(node.meta), {}, {}


def _piece(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d, part: slice) -> nn.Module:
    """Return a layer with a part of another's outputs."""
    made = copy.deepcopy(layer)
    made.weight = nn.Parameter(layer.weight.detach()[part].clone(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach()[part].clone(), requires_grad=layer.bias.requires_grad)
    size = len(made.weight)
    if isinstance(made, nn.Linear):
        made.out_features = size
    else:
        made.out_channels = size
    return made
