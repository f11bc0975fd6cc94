"""What an exported program (.pt2) may name: the one set of rules, for those who open it and for those who only look at it."""

from __future__ import annotations

import ast
import functools
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_NAMESPACES = ("aten", "prims", "quantized_decomposed", "torchvision")
_FILE_OPERATORS = ("from_file", "save", "load", "load_library")
_NESTED = ("cond", "wrap_with_set_grad_enabled", "wrap_with_autocast", "map_impl", "while_loop", "scan", "invoke_subgraph")
_TORCH = ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum", "sym_sqrt", "_sym_sqrt")
_MATH = ("ceil", "floor", "trunc", "sqrt", "pow", "log", "log2", "exp")
_OPERATORS = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "eq", "ne", "lt", "le", "gt", "ge", "and_",
    "or_", "xor", "not_", "lshift", "rshift", "getitem",
)
_FUNCTIONS = frozenset(
    """Symbol Dummy Integer Rational Float Add Mul Pow Mod Max Min Abs And Or Not Eq Ne Lt Le Gt Ge Equality Unequality
    StrictLessThan LessThan StrictGreaterThan GreaterThan FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt
    CeilDiv LShift RShift PowByNatural FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat
    TruncToInt RoundToInt RoundDecimal ToFloat Identity floor ceiling""".split()  # noqa: SIM905
)
_SYMBOL = re.compile(r"(s|u|z|zuf|zf)\d+|oo|int_oo|true|false")
_NAME = re.compile(r"[\w.]+")  # of a node, or the path of a weight: no quotes, brackets, spaces
_SPEC = re.compile(r'[\w\s.,:{}\[\]"\\\-]*')
_GUARD_CALLS = ("size", "stride", "storage_offset", "dim")
_NAMED = ("as_name", "name", "buffer_name", "parameter_name", "tensor_constant_name", "custom_obj_name", "class_fqn")
_EXPRESSION_LIMIT = 4000
_VALUES = ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "range_constraints")


def troubles(program: Any) -> Iterator[tuple[bool, str]]:
    """Yield what keeps a program, read as JSON, from being harmless.

    Arguments:
        program: the parsed content of `models/*.json`.

    Returns:
        Pairs: whether torch would evaluate it as code when it opens the file, and what it is, in words.
    """
    for key, value in _walk(program):
        if key == "expr_str" and not harmless_expression(value):
            yield True, f"the expression {str(value)[:80]!r} is more than arithmetic"
        if key == "target" and isinstance(value, str) and not harmless_operator(value):
            yield False, f"it calls '{value[:80]}'"
        if key in _NAMED and isinstance(value, str) and value and not _NAME.fullmatch(value):
            yield True, f"the name {value[:80]!r} is no identifier"
        if key in ("in_spec", "out_spec") and isinstance(value, str) and ("__enum__" in value or not _SPEC.fullmatch(value)):
            yield True, "its structure of inputs names objects to import"
        if key in _VALUES:
            for name in value if isinstance(value, dict) else ("not a table",):
                if not _NAME.fullmatch(name):
                    yield True, f"the name {name[:80]!r} is no identifier"
        if key == "custom_obj_values" and value:
            yield False, "it holds objects of custom classes"
        if key == "guards_code":
            for guard in value if isinstance(value, list) else (value,):
                if guard is not None and not _harmless_guard(guard):
                    yield True, f"the guard {str(guard)[:80]!r} is more than a comparison"


def raw_weights(configs: Mapping[str, Any]) -> set[str]:
    """Return the members that are read as plain numbers: those of which every configuration says so.

    Arguments:
        configs: parsed JSON by member name, of all `data/weights/*_config.json` and `data/constants/*_config.json`.
    """
    plain: set[str] = set()
    pickled: set[str] = set()
    for name, content in configs.items():
        folder = name.rpartition("/")[0]
        config = content.get("config") if isinstance(content, dict) else None
        for entry in config.values() if isinstance(config, dict) else ():
            path = str(entry.get("path_name")) if isinstance(entry, dict) else ""
            fine = isinstance(entry, dict) and entry.get("use_pickle") is False and re.fullmatch(r"(weight|tensor)_\d+", path)
            (plain if fine else pickled).add(f"{folder}/{path}")
    return plain - pickled


def harmless_operator(target: str) -> bool:
    """Whether a node's target is an operator of torch, and not any function that can be reached by name from it."""
    head, _, rest = target.partition(".")
    if head == "_operator":
        return rest in _OPERATORS and hasattr(operator, rest)
    if head == "math":
        return rest in _MATH
    parts = rest.split(".")
    if head != "torch":
        return False
    if parts[:2] == ["ops", "higher_order"]:
        return len(parts) == 3 and parts[2] in _NESTED
    if parts[0] != "ops":
        return len(parts) == 1 and parts[0] in _TORCH
    if len(parts) != 4 or parts[1] not in _NAMESPACES or parts[2] in _FILE_OPERATORS:
        return False
    packet = getattr(getattr(torch.ops, parts[1]), parts[2], None)
    return isinstance(getattr(packet, parts[3], None), torch._ops.OpOverload)


def harmless_expression(text: object) -> bool:
    """Whether a symbolic size is arithmetic over numbers, symbols and the functions known here."""
    return isinstance(text, str) and len(text) <= _EXPRESSION_LIMIT and _harmless(text)


@functools.lru_cache(1024)
def _harmless(text: str) -> bool:
    """The answer for a text: programs repeat the same few sizes at every node."""
    tree = _parsed(text)
    return tree is not None and all(_plain_node(node) for node in ast.walk(tree))


def _plain_node(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):  # Symbol('s0')
            return re.fullmatch(r"\w+|[\d.e+-]+", node.value) is not None
        return isinstance(node.value, (bool, int, float))
    return isinstance(node, _ARITHMETIC)


def _harmless_guard(text: object) -> bool:
    """Whether a guard compares sizes of inputs: `L['x'].size()[0] <= 1024`."""
    tree = _parsed(text)
    if tree is None:
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if node.attr not in _GUARD_CALLS:
                return False
        elif isinstance(node, ast.Call):
            named = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
            if not named and not (isinstance(node.func, ast.Attribute) and node.func.attr in _GUARD_CALLS):
                return False
        elif isinstance(node, ast.Name):
            if node.id not in ("L", "inf") and node.id not in _FUNCTIONS:
                return False
        elif not _plain_node(node) and not isinstance(node, ast.Subscript):
            return False
    return True


_ARITHMETIC = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.keyword, ast.operator, ast.unaryop, ast.cmpop,
    ast.boolop, ast.expr_context,
)


def _parsed(text: object) -> ast.Expression | None:
    if not isinstance(text, str) or len(text) > _EXPRESSION_LIMIT:
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, at any depth."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            yield from one.items()
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
