"""The inert pickle machine: follows every opcode on stand-ins, so that no trick with the memo or the stack hides a name.

Nothing is imported, called or allocated on the pickle's behalf. `pickletools.genops` cuts the stream; where it stumbles, or where
the real machine would, the pickle cannot be verified.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

from hauberk.assets.scan import jagged, numpy_state, rules
from hauberk.assets.scan.allowlist import Ruling, Use, canonical
from hauberk.assets.scan.opcodes import Bounded, cut
from hauberk.assets.scan.stack import Stack
from hauberk.assets.scan.values import MARK, Global, Items, Made
from hauberk.assets.scan.verdict import Level, Stumble, Unverifiable

if TYPE_CHECKING:
    from hauberk.assets.scan.scanner import Scan

_CONSTANTS = """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT
"""
CONSTANTS = frozenset(_CONSTANTS.split())
PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Opcodes after which the scan itself holds one more object.
MAKING = frozenset(
    """EMPTY_DICT EMPTY_LIST EMPTY_SET LIST DICT TUPLE TUPLE1 TUPLE2 TUPLE3 FROZENSET GLOBAL STACK_GLOBAL REDUCE NEWOBJ NEWOBJ_EX
    INST OBJ PUT BINPUT LONG_BINPUT MEMOIZE PERSID BINPERSID NEXT_BUFFER EXT1 EXT2 EXT4 SETITEM""".split()  # noqa: SIM905
)
LONGEST_NAME = 1000


class Machine(Stack):
    """Runs one pickle on stand-ins.

    Arguments:
        scan: where issues go and limits are kept.
        where: the part that is read, for issues.
        on_build: told of every object filled, right after its opcode, with the stream in its place: joblib puts raw arrays there.
    """

    def __init__(self, scan: Scan, where: str, on_build: Callable[[Made, BinaryIO], None] | None = None) -> None:
        super().__init__(scan, where)
        self.on_build = on_build
        self.persistent: list[Any] = []
        self.version = self.frame_end = 0

    def run(self, stream: BinaryIO) -> Any:
        """Follow one pickle from the stream's place to its STOP and return a stand-in for what it would load.

        Raises:
            Unverifiable, ValueError and others: where the pickle is cut off, malformed or beyond the limits.
        """
        bounded = Bounded(stream)
        for opcode, arg, position in cut(bounded):
            self.at = position
            self.scan.meter.step()
            name = opcode.name
            if name in MAKING:
                self.scan.meter.hold()
            if bounded.escaped and name in ("GLOBAL", "INST"):
                # genops undoes escapes that the real machine takes as they stand: the two would read different names.
                raise Unverifiable(f"a name with a backslash at byte {self.at}")
            bounded.escaped = False
            if name in CONSTANTS:
                if isinstance(arg, (str, bytes)):
                    self.scan.meter.spend(len(arg))
                self.stack.append(arg)
            elif name in PLAIN:
                self.stack.append(PLAIN[name])
            elif name == "STOP":
                if len(self.stack) != 1 or self.stack[0] is MARK:
                    raise Stumble(f"the pickle ends with {len(self.stack)} objects on its stack, not one")
                self._framed()
                return self.stack[0]
            elif len(self.stack) > self.scan.limits.stack:
                raise Unverifiable(f"more than {self.scan.limits.stack} objects on the stack")
            else:
                getattr(self, f"_{name.lower()}", self._unknown)(arg)
                if name == "BUILD" and self.on_build is not None and isinstance(self.stack[-1], Made):
                    self.on_build(self.stack[-1], stream)
        raise Unverifiable("the pickle has no end")

    def import_name(self, module: object, name: object) -> None:
        """Push a name, judged; nothing is imported."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Unverifiable(f"a name is put together from {type(module).__name__} and {type(name).__name__} at byte {self.at}")
        if max(len(module), len(name)) > LONGEST_NAME:
            raise Unverifiable(f"a name of {max(len(module), len(name))} characters at byte {self.at}")
        module, name = canonical(module, name)
        use = rules.SEEN.get(f"{module}.{name}")
        made = Global(module, name, self.scan.judge(module, name) if use is None else Ruling(Level.SAFE, use))
        self.scan.refers(made.full[:200])
        if made.ruling.level is not Level.SAFE:
            self.warn(made.ruling.level, f"imports {made.full[:200]}")
        self.stack.append(made)

    def call(self, callee: object, args: object) -> None:
        """Push what a call would give, and judge the call."""
        if not isinstance(callee, Global):
            self.warn(Level.DANGEROUS, "calls an object that is built in the stream")
            self.stack.append(Made("unknown"))
            return
        if not isinstance(args, tuple):
            # What stands for a tuple but is not one here was made by a call: its content is not known.
            self.warn(Level.UNVERIFIABLE, f"calls {callee.full} with arguments that cannot be followed")
            args = ()
        if callee.ruling.level is Level.SAFE:
            if callee.ruling.use is not Use.CALL:
                self.warn(Level.UNKNOWN, f"calls {callee.full}")
            why = rules.refusal(callee.full, args)
            if why:
                self.warn(Level.DANGEROUS, f"{callee.full} {why}")
            if callee.full == "torch.storage._load_from_bytes":
                self._nested(args)
            if callee.full == jagged.WRAPPED and jagged.rebuilt(args) and not why:
                self._doubt(lambda: jagged.check(args, self.scan.archive, self.scan.meter.spend))
            self._doubt(lambda: numpy_state.check_call(callee.full, args))
        self.stack.append(Made(rules.result_of(callee, args), args))

    def make(self, cls: object, args: object, named: object = None) -> None:
        """Push an object made without its constructor, and judge its class."""
        if not isinstance(cls, Global) or not isinstance(args, tuple):
            raise Unverifiable(f"an object is made of something that cannot be followed at byte {self.at}")
        empty = not args and (named is None or (isinstance(named, Items) and not named.pairs))
        if cls.ruling.level is Level.SAFE:
            if cls.ruling.use is Use.VALUE or (cls.ruling.use is Use.CLASS and not empty):
                self.warn(Level.UNKNOWN, f"makes {cls.full} with arguments")
            why = rules.refusal(cls.full, args) if cls.ruling.use is Use.CALL else ""
            if why or (cls.full in rules.RULES and named is not None and not empty):
                self.warn(Level.DANGEROUS, f"{cls.full} {why or 'is given named arguments'}")
            if not why:
                self._doubt(lambda: numpy_state.check_call(cls.full, args))
        self.stack.append(Made(cls.full, args))

    def _doubt(self, check: Callable[[], None]) -> None:
        """Note what a check cannot verify, and go on: worse may come."""
        try:
            check()
        except Unverifiable as error:
            self.warn(Level.UNVERIFIABLE, str(error))

    def _nested(self, args: tuple[Any, ...]) -> None:
        if len(args) != 1 or not isinstance(args[0], (bytes, bytearray)):
            self.warn(Level.UNVERIFIABLE, "loads a pickle from bytes that cannot be followed")
            return
        place = f"{self.where}@{self.at}:nested"
        found = self.scan.part(io.BytesIO(bytes(args[0])), place)
        if found not in ("pickle", "zip", "unknown"):
            self.scan.issue(Level.UNVERIFIABLE, place, f"it is loaded as a torch file and reads as {found}")

    def _unknown(self, _: object) -> None:
        raise Unverifiable(f"an opcode that is not known at byte {self.at}")

    def _proto(self, arg: int) -> None:
        if not 0 <= arg <= 5:
            raise Stumble(f"pickle protocol {arg} is not known")
        self.version = arg

    def _frame(self, arg: int) -> None:
        self.frame_end = max(self.frame_end, self.at + 9 + arg)

    def _framed(self) -> None:
        """Readers take a frame as a whole: what comes after this opcode is to them behind the frame, not behind the opcode."""
        if self.frame_end > self.at + 1:
            raise Unverifiable(f"a frame reaches {self.frame_end - self.at - 1} bytes beyond byte {self.at}")

    def _global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        if " " in name or not name:
            raise Unverifiable(f"a name with spaces at byte {self.at}")
        self.import_name(module, name)

    def _stack_global(self, _: None) -> None:
        name, module = self.pop(), self.pop()
        self.import_name(module, name)

    def _inst(self, arg: str) -> None:
        args = tuple(self.items())
        self._global(arg)
        self._instance(self.pop(), args)

    def _obj(self, _: None) -> None:
        taken = self.items()
        if not taken:
            raise Unverifiable(f"an object of nothing at byte {self.at}")
        self._instance(taken[0], tuple(taken[1:]))

    def _instance(self, cls: object, args: tuple[Any, ...]) -> None:
        # The real machine skips the constructor only for a plain class without arguments.
        if not args and isinstance(cls, Global) and cls.ruling.use is Use.CLASS:
            self.make(cls, args)
        else:
            self.call(cls, args)

    def _reduce(self, _: None) -> None:
        args = self.pop()
        self.call(self.pop(), args)

    def _newobj(self, _: None) -> None:
        args = self.pop()
        self.make(self.pop(), args)

    def _newobj_ex(self, _: None) -> None:
        named, args = self.pop(), self.pop()
        self.make(self.pop(), args, named)

    def _build(self, _: None) -> None:
        (state,) = self.stored([self.pop()])
        target = self.filled()
        if isinstance(target, Made):
            if target.of == "joblib.numpy_pickle.NumpyArrayWrapper":
                self._framed()
                if target.state is not None:
                    # joblib has put an array in its place by now, and the settings of both times would count.
                    raise Unverifiable(f"a joblib array is described twice, at byte {self.at}")
            target.state = state
            if why := rules.misfit(target):
                self.warn(Level.DANGEROUS, f"{target.of} {why}")
            self._doubt(lambda: numpy_state.check_state(target))
        elif not isinstance(target, Global):
            raise Unverifiable(f"a {type(target).__name__} is filled like an object at byte {self.at}")

    def _persid(self, arg: str) -> None:
        self.persistent.append(arg)
        self.stack.append(Made("persistent", (arg,)))

    def _binpersid(self, _: None) -> None:
        key = self.pop()
        self.persistent.append(key)
        self.stack.append(rules.persistent(key) or Made("persistent", (key,)))

    def _extension(self, arg: int) -> None:
        self.warn(Level.UNKNOWN, f"imports extension {arg}, whose meaning only the loading program knows")
        self.stack.append(Made("unknown"))

    _ext1 = _ext2 = _ext4 = _extension

    def _next_buffer(self, _: None) -> None:
        self.stack.append(Made("buffer"))

    def _readonly_buffer(self, _: None) -> None:
        self.top()
