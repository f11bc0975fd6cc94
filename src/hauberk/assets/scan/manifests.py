"""JSON inside archives that names code to run: skops' schema, and the programs that torch exports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hauberk.assets.scan.allowlist import Use, judge
from hauberk.assets.scan.verdict import Level, Unverifiable

if TYPE_CHECKING:
    from hauberk.assets.scan.scanner import Scan

# A symbolic size is parsed by a library that evaluates it: sums, products and a few functions of symbols alone.
_EXPRESSION = re.compile(
    r"(?:[\s\d+\-*/%(),.<>=]|'[su]\d+'|\b(?:[su]\d+|z[fu]\d+|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|Eq|Ne|Integer|Symbol"
    r"|Add|Mul|Pow|positive|nonnegative|integer|real|finite|True|False|oo|int_oo)\b)*"
)
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|quantized|higher_order)\.[\w.]+|math\.\w+|torch\.sym_\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
)


def scan_json(scan: Scan, name: str, content: Any, where: str) -> None:
    """Judge what a JSON member of an archive names."""
    schema = name.split("/")[-1] == "schema.json"
    for node in _walk(content):
        if schema and "__loader__" in node:
            _skops(scan, node, where)
        expression = node.get("expr_str")
        if isinstance(expression, str) and not _EXPRESSION.fullmatch(expression):
            scan.issue(Level.DANGEROUS, where, f"holds the expression {expression[:80]!r}, which a loader would evaluate")
        target = node.get("target")
        if isinstance(target, str) and "inputs" in node and not _OPERATORS.fullmatch(target):
            scan.issue(Level.UNKNOWN, where, f"calls the operator {target[:80]}")


def _skops(scan: Scan, node: dict[str, Any], where: str) -> None:
    loader = node["__loader__"]
    module, name = node.get("__module__"), node.get("__class__")
    content = node.get("content")
    if loader in ("FunctionNode", "TypeNode", "UfuncNode") and isinstance(content, dict):
        module, name = content.get("module_path", module), content.get("function", content.get("class_name", name))
    if not isinstance(module, str) or not isinstance(name, str):
        scan.issue(Level.UNVERIFIABLE, where, f"a node of kind {str(loader)[:40]} names nothing")
        return
    if loader in ("JsonNode", "CachedNode", "SliceNode"):
        return  # plain JSON values and references to other nodes
    ruling = judge(module, name)
    scan.refers(f"{module}.{name}"[:200])
    fine = ruling.use in (Use.CLASS, Use.CALL, Use.VALUE) or (loader in ("FunctionNode", "UfuncNode") and module == "numpy")
    if not fine or (loader in ("MethodNode", "OperatorFuncNode", "ReduceNode") and ruling.use is not Use.CALL):
        worst = Level.DANGEROUS if ruling.level is Level.DANGEROUS else Level.UNKNOWN
        scan.issue(worst, where, f"imports {module}.{name}"[:200])


def _walk(content: Any, limit: int = 5_000_000) -> Iterator[dict[str, Any]]:
    """Yield every table, however deep; without recursion."""
    left, seen = [content], 0
    while left:
        one = left.pop()
        seen += 1
        if seen > limit:
            raise Unverifiable(f"more than {limit} JSON values")
        if isinstance(one, dict):
            yield one
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
