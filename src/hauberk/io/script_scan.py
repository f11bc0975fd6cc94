"""What a TorchScript file may do without trust: compute. Its code is read before it is loaded, its graphs before they run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hauberk.core.errors import UnsafeFile
from hauberk.io.zip_bones import check_file_bones

# Namespaces whose operators compute on tensors and plain values.
_NAMESPACES = frozenset({"aten", "prim", "quantized", "torchvision"})
# Of those, the ones that reach files, other processes, Python, or code that is not in the graph looked at.
_DENIED = frozenset(
    """aten::save aten::load aten::from_file aten::_print prim::rpc_async prim::rpc_sync prim::rpc_remote
    prim::PythonOp prim::IgnoredPythonOp prim::CallMethod prim::CallFunction prim::LegacyTypedConstructor
    prim::BailOut prim::BailoutTemplate prim::FallbackGraph prim::DifferentiableGraph prim::TensorExprGroup prim::FusionGroup
    prim::oneDNNFusionGroup prim::StaticSubgraph""".split()  # noqa: SIM905
)
_FILES = re.compile(r"\b(save|load|from_file)\b")
_WORDS = re.compile(
    rb"__setstate__|\btorch\s*\.\s*(?:save|load|from_file)\b|(?<![\w.])ops\s*\.\s*(?!(?:prim|aten|quantized|torchvision)\s*\.)\w+"
    rb"|\bops\s*\.\s*\w+\s*\.\s*(?:save|load|from_file)\b"
)


def check_script_text(path: Path) -> None:
    """Return only when no code in the file would do more than compute while torch loads it.

    `__setstate__` runs on loading, before any graph can be looked at; the rest is refused early for the better message.

    Raises:
        UnsafeFile: naming what the script calls, or how the archive reads in two ways.
        RuntimeError: when torch's reader cannot open the file.
    """
    reader = torch._C.PyTorchFileReader(str(path))
    names = list(reader.get_all_records())
    check_file_bones(path)
    for name in names:
        if name.startswith("code/") or name.endswith(".py"):
            danger = _WORDS.search(reader.get_record(name))
            if danger and not name.endswith(".debug_pkl"):
                raise script_refusal(path, f"its script calls {b''.join(danger.group().split()).decode()}")


def check_script_graphs(path: Path, script: Any) -> None:
    """Return only when all methods and hooks of a loaded script, and what they call, are made of computing operators.

    Raises:
        UnsafeFile: naming the operator that is not.
    """
    for graph in _graphs(script):
        for kind in _kinds(graph):
            if kind in _DENIED or kind.split("::")[0] not in _NAMESPACES or _FILES.search(kind.split("::")[-1]):
                raise script_refusal(path, f"its script calls {kind}")


def _graphs(script: Any) -> Iterator[Any]:
    for module in script.modules():
        inner = module._c
        for name in inner._method_names():
            yield inner._get_method(name).inlined_graph
        for hook in [*inner._get_forward_hooks(), *inner._get_forward_pre_hooks()]:
            yield hook.inlined_graph


def _kinds(graph: Any) -> Iterator[str]:
    """Yield the operator of each node, in nested blocks and graphs held as attributes too; without recursion."""
    left = [graph]
    while left:
        for node in left.pop().nodes():
            yield str(node.kind())
            left.extend(node.blocks())
            for name in node.attributeNames():
                if node.kindOf(name) == "g":
                    left.append(node.g(name))
                elif node.kindOf(name) == "gs":
                    left.extend(node.gs(name))


def script_refusal(path: Path, why: str) -> UnsafeFile:
    """Return the error that says a file was not opened, and why."""
    return UnsafeFile(
        f"{path} would run code when opened: {why}", want="a script that only computes",
        fix="Give package.module:attr with weights in safetensors; or pass trust=True (--trust) if you trust whoever made it",
    )
