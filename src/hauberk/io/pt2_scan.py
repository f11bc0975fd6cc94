"""What an exported program (.pt2) may hold to be opened without trust.

Opening such a file is not harmless by itself: torch unpickles some parts, loads compiled libraries, evaluates symbolic
expressions and guards as Python, and calls operators by name. So the file is read first, as plain JSON, and everything in it
must be of a kind known to be harmless; whatever is not, is refused.
"""

from __future__ import annotations

import ast
import io
import json
import operator
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hauberk.core.errors import ModelError, UnsafeFile
from hauberk.io.hostile import check_archive, first_line

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


def scan_pt2(path: Path) -> None:
    """Return only when a .pt2 file holds nothing that runs code when it is opened or called.

    Raises:
        ModelError: when it is broken.
        UnsafeFile: naming what it would run.
    """
    listed = check_archive(path)
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        names = list(reader.get_all_records())
    except RuntimeError as error:
        raise ModelError(
            f"{path} is broken or cut short ({first_line(error)})", want="a file that torch.export.save wrote",
            fix="Export the model again",
        ) from error
    # Two readers that see different files would let one part be checked and another be opened.
    if {name.split("/", 1)[-1] for name in listed} - {*names, ".data/version", ".data/serialization_id", "version", "byteorder"}:
        raise _refusal(path, "its directory reads in two ways")
    for name in names:
        kind = name.rsplit("/", 1)[0]
        if "aotinductor" in name or name.endswith((".so", ".pyd", ".dll", ".dylib", ".cpp", ".cubin", ".py")):
            raise _refusal(path, f"'{name}' is compiled or source code")
        if kind in ("data/weights", "data/constants") and name.endswith("_config.json"):
            _scan_payload(path, reader, name)
        elif name.endswith((".pt", ".pkl")) or "custom_obj" in name or "opaque_obj" in name:
            _scan_pickle(path, name, reader.get_record(name))
    models = [name for name in names if name.startswith("models/") and name.endswith(".json")]
    if not models:
        raise ModelError(
            f"{path} holds no exported program", want="a file that torch.export.save of torch 2.9 or newer wrote",
            fix="Export the model again, or give another form of it",
        )
    for name in models:
        program = _json(path, name, reader.get_record(name))
        _scan_program(path, program)


def _scan_payload(path: Path, reader: Any, name: str) -> None:
    config = _json(path, name, reader.get_record(name)).get("config", {})
    for entry in config.values() if isinstance(config, dict) else ():
        if entry.get("use_pickle") or not str(entry.get("path_name", "")).startswith(("weight_", "tensor_")):
            raise _refusal(path, f"'{entry.get('path_name')}' is a pickled object")


def _scan_pickle(path: Path, name: str, content: bytes) -> None:
    """Small parts, such as sample inputs, are pickled tensors; torch falls back to running them when the safe way fails."""
    try:
        if content:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch writes these parts in a newer protocol than it likes to read
                torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _refusal(path, f"'{name}' is a pickle of more than tensors") from error


def _scan_program(path: Path, program: dict[str, Any]) -> None:
    for key, value in _walk(program):
        if key == "expr_str" and not _harmless_expression(value):
            raise _refusal(path, f"the expression {str(value)[:80]!r} is more than arithmetic")
        if key == "target" and isinstance(value, str) and not _harmless_operator(value):
            raise _refusal(path, f"it calls '{value[:80]}'")
        if key in _NAMED and isinstance(value, str) and value and not _NAME.fullmatch(value):
            raise _refusal(path, f"the name {value[:80]!r} is no identifier")
        if key in ("in_spec", "out_spec") and isinstance(value, str) and ("__enum__" in value or not _SPEC.fullmatch(value)):
            raise _refusal(path, "its structure of inputs names objects to import")
        if key in ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "range_constraints"):
            for name in value:
                if not _NAME.fullmatch(name):
                    raise _refusal(path, f"the name {name[:80]!r} is no identifier")
        if key == "custom_obj_values" and value:
            raise _refusal(path, "it holds objects of custom classes")
    for guard in program.get("guards_code") or ():
        if not _harmless_guard(guard):
            raise _refusal(path, f"the guard {str(guard)[:80]!r} is more than a comparison")


def _harmless_operator(target: str) -> bool:
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


def _harmless_expression(text: object) -> bool:
    """Whether a symbolic size is arithmetic over numbers, symbols and the functions known here."""
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


def _json(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        made = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"'{name}' in {path} is not JSON ({first_line(error)})", want="an exported program") from error
    if not isinstance(made, dict):
        raise ModelError(f"'{name}' in {path} holds a {type(made).__name__}", want="an exported program")
    return made


def _refusal(path: Path, why: str) -> UnsafeFile:
    return UnsafeFile(
        f"{path} would run code when opened: {why}", want="an exported program of operators and weights alone",
        fix="Give package.module:attr with weights in safetensors; or pass trust=True (--trust) if you trust whoever made it",
    )
