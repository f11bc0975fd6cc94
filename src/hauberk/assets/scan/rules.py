"""Calls that are harmless with some arguments only. A callable with a rule may be called on the spot, never handed on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hauberk.assets.scan import jagged, lazy, tables
from hauberk.assets.scan.allowlist import Use
from hauberk.assets.scan.values import Global, Made
from hauberk.assets.scan.verdict import Unverifiable

Rule = Callable[[tuple[Any, ...]], str]
LOOKUP = "builtins.getattr"
# Names that are listed for no other format: in a pickle the arguments are seen that make them harmless.
SEEN = {LOOKUP: Use.CALL, jagged.REBUILD: Use.VALUE, jagged.CLASS: Use.VALUE, jagged.RANGE: Use.CLASS}
LARGEST = 2**26  # bytes that a call may allocate out of nothing

_PLAIN = "object dict list tuple set frozenset int float str"
_BASES = {f"builtins.{name}" for name in (*_PLAIN.split(), "bytes", "complex")}
_FACTORIES = {f"builtins.{name}" for name in (*_PLAIN.split(), "bool")} - {"builtins.frozenset"}
_SMALL = {"_codecs.encode", "collections.OrderedDict", "collections.Counter", "collections.deque"}
NEW_OBJECTS = ("sklearn.neighbors._kd_tree.newObj", "sklearn.neighbors._ball_tree.newObj", "sklearn.metrics._dist_metrics.newObj")
# Functions that give back what they were given, or what a loader fetches: the object may be any other of the stream, or a class.
_UNSEEN = re.compile(r"torch\.(\w+\.)+_*[a-z]\w*|persistent|buffer|builtins\.getattr")
_TENSORS = re.compile(r"torch\._utils\._rebuild_\w+|torch\._tensor\._rebuild_from_type_v2")
_REBUILDERS = (
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_parameter", "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
)


def _reconstructor(args: tuple[Any, ...]) -> str:
    if len(args) != 3 or not _is_class(args[0]):
        return "makes an object of something that is not a listed class"
    base = args[1].full if isinstance(args[1], Global) else ""
    if base not in _BASES or (base == "builtins.object" and args[2] is not None):
        return f"makes an object through the base '{base}'"
    # Any other base is called with the third argument, as if it were called itself.
    return "" if base == "builtins.object" else refusal(base, args[2:])


def _new(args: tuple[Any, ...]) -> str:
    if not args or not _is_class(args[0]):
        return "makes an object of something that is not a listed class"
    rest = args[1:]
    if args[0].ruling.use is Use.CALL:
        # With __newobj_ex__ the arguments are a tuple in a tuple; a rule that cannot read them refuses.
        return refusal(args[0].full, rest)
    empty = all((isinstance(one, tuple) and not one) or isinstance(one, type(None)) for one in rest)
    return "" if empty else f"gives arguments to {args[0].full}.__new__"


def _encode(args: tuple[Any, ...]) -> str:
    fine = len(args) == 2 and isinstance(args[0], str) and args[1] in ("latin1", "latin-1")
    return "" if fine else "encodes with a codec other than latin1"


def _partial(args: tuple[Any, ...]) -> str:
    fine = bool(args) and _is_class(args[0]) and args[0].full not in RULES
    return "" if fine else "prepares a call of something that is not listed as harmless"


def _default(args: tuple[Any, ...]) -> str:
    fine = not args or args[0] is None or (isinstance(args[0], Global) and args[0].full in _FACTORIES)
    return _container(args[1:]) if fine else "sets a default factory other than a plain type"


def _from_type(args: tuple[Any, ...]) -> str:
    if jagged.rebuilt(args):
        return jagged.refusal(args)
    if len(args) == 4 and jagged.acts(args[3]):
        return "sets more than what a tensor carries along"
    fine = len(args) == 4 and isinstance(args[0], Global) and args[0].full.startswith(_REBUILDERS) and _is_class(args[1])
    return "" if fine else "rebuilds a tensor through something that is not a torch rebuild function"


def _set_state(args: tuple[Any, ...]) -> str:
    fine = len(args) == 2 and isinstance(args[0], Made) and args[0].of.startswith("torch.") and not unseen(args[0], sets=True)
    if fine and jagged.acts(args[1]):
        return "sets more than what a tensor carries along"
    return "" if fine else "sets the state of something that is not an instance"


def _container(args: tuple[Any, ...]) -> str:
    # A range, or any object that is built in the stream, may unroll into far more than the file holds.
    if any(isinstance(one, Made) and one.of == "builtins.range" for one in args):
        return "unrolls a range into memory"
    grown = [one for one in args if isinstance(one, Made) and one.of not in _SMALL]
    return f"unrolls the result of {grown[0].of}" if grown else ""


def _fraction(args: tuple[Any, ...]) -> str:
    # An exponent of ten digits makes a number of as many bytes as ten digits count.
    fine = all(type(one) is int or (isinstance(one, str) and re.fullmatch(r"-?\d{1,4000}(/\d{1,4000})?", one)) for one in args)
    return "" if fine else "makes a fraction of something else than whole numbers"


def _tree(args: tuple[Any, ...]) -> str:
    fine = len(args) == 3 and all(type(one) is int and 0 <= one <= 2**24 for one in (args[0], args[2]))
    return "" if fine else "makes a tree of sizes that cannot be read"


def _buffer(args: tuple[Any, ...]) -> str:
    if any(isinstance(one, int) and one > LARGEST for one in args):
        return f"asks for {max(one for one in args if isinstance(one, int))} bytes out of nothing"
    return _container(args)


def _text(args: tuple[Any, ...]) -> str:
    # str(x) and int(x) of an instance would call what it was filled with.
    fine = all(isinstance(one, (str, bytes, int, float, type(None))) for one in args)
    return "" if fine else "converts an object built in the stream"


def _bit_generator(args: tuple[Any, ...]) -> str:
    fine = not args or isinstance(args[0], str) or (
        isinstance(args[0], Global) and args[0].module.startswith("numpy.random.") and args[0].ruling.use is Use.CLASS
    )
    return "" if fine and len(args) <= 2 else "makes a bit generator of something else"


def _new_metric(args: tuple[Any, ...]) -> str:
    # newObj(x) is x.__new__(x).
    fine = len(args) == 1 and isinstance(args[0], Global) and args[0].full.startswith(("sklearn.neighbors.", "sklearn.metrics."))
    return "" if fine and _is_class(args[0]) else "makes an object of something that is no metric and no tree"


def _generator(args: tuple[Any, ...]) -> str:
    # A second argument would be called with the first.
    made = isinstance(args[0], Made) and args[0].of.startswith("numpy.random.") if args else True
    return "" if len(args) <= 1 and (made or isinstance(args[0], str)) else "makes a generator of something else"


RULES: dict[str, Rule] = {
    **tables.RULES,
    "copyreg._reconstructor": _reconstructor, "copyreg.__newobj__": _new, "copyreg.__newobj_ex__": _new,
    "_codecs.encode": _encode, LOOKUP: lazy.method,
    "functools.partial": _partial, "collections.defaultdict": _default, "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._set_obj_state": _set_state, "torch.storage._load_from_bytes": lambda args: "",
    **{f"builtins.{name}": _container for name in ("list", "tuple", "set", "frozenset", "dict")}, "builtins.bytearray": _buffer,
    "collections.Counter": _container, "collections.deque": _container, "collections.OrderedDict": _container,
    "fractions.Fraction": _fraction, "sklearn.tree._tree.Tree": _tree,
    "builtins.bytes": _buffer, **{f"builtins.{name}": _text for name in ("str", "int", "float", "complex")},
    "numpy.random._pickle.__bit_generator_ctor": _bit_generator, "numpy.random._pickle.__generator_ctor": _generator,
    "numpy.random._pickle.__randomstate_ctor": _generator, **dict.fromkeys(NEW_OBJECTS, _new_metric),
}
# Plain types may be handed on all the same: they are dtypes and factories as often as calls.
HANDED_ON = _BASES | {
    "builtins.bool", "builtins.bytearray", "collections.Counter", "collections.deque", "collections.OrderedDict",
    "fractions.Fraction", "sklearn.tree._tree.Tree",
}


def refusal(full: str, args: tuple[Any, ...]) -> str:
    """Return why calling `full` with these arguments is not harmless; empty when it is."""
    rule = RULES.get(full)
    return "" if rule is None else rule(args)


def misfit(made: Made) -> str:
    """Return why what an object was just filled with is not harmless; empty when it is."""
    if made.of == jagged.RANGE:
        return jagged.dimension(made.state)
    return lazy.handle(made.state) if made.of == lazy.HANDLE else ""


def unseen(made: Made, *, sets: bool = False) -> bool:
    """Whether what is filled here may be an object that the scan knows by another stand-in, or not at all.

    Arguments:
        made: the stand-in that is filled.
        sets: attributes alone are set, as on tensors.
    """
    return _UNSEEN.fullmatch(made.of) is not None and not (sets and _TENSORS.fullmatch(made.of))


def result_of(callee: Global, args: tuple[Any, ...]) -> str:
    """Return the name of what a call makes: that of the class, where the function is told one."""
    told = callee.full.startswith("copyreg.") or callee.full in NEW_OBJECTS
    return args[0].full if told and args and isinstance(args[0], Global) else callee.full


def persistent(key: object) -> Global | None:
    """Return the class that a persistent key names: torch's legacy reader hands it on as it is. None for other keys.

    Raises:
        Unverifiable: when the kind of a key is put together in the stream.
    """
    if not isinstance(key, tuple) or not key:
        return None
    kind = key[0].decode("latin1") if isinstance(key[0], bytes) else key[0]  # torch takes both for the same
    if not isinstance(kind, str):
        raise Unverifiable("a persistent object of a kind that cannot be read")
    return key[1] if kind == "module" and len(key) > 1 and isinstance(key[1], Global) else None


def may_hand_on(value: object) -> bool:
    """Whether a value may be stored or passed: not a callable that is harmless with some arguments only."""
    return not isinstance(value, Global) or value.full not in RULES or value.full in HANDED_ON


def _is_class(value: object) -> bool:
    return isinstance(value, Global) and value.ruling.use in (Use.CLASS, Use.CALL)
