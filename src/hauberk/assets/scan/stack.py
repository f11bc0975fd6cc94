"""The stack and the memo of the inert pickle machine, and the opcodes that only move values and gather them into containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hauberk.assets.scan import rules
from hauberk.assets.scan.values import MARK, Global, Items, Made, check_keys
from hauberk.assets.scan.verdict import Level, Stumble, Unverifiable

if TYPE_CHECKING:
    from hauberk.assets.scan.scanner import Scan

LARGEST_MEMO = 2**24  # the C reader makes room for every entry below


class Stack:
    """What a pickle moves values with.

    Arguments:
        scan: where issues go and limits are kept.
        where: the part that is read, for issues.
    """

    def __init__(self, scan: Scan, where: str) -> None:
        self.scan, self.where = scan, where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.at = 0

    def warn(self, level: Level, what: str) -> None:
        """Add an issue at the opcode being followed."""
        self.scan.issue(level, f"{self.where}@{self.at}" if self.where else f"@{self.at}", what)

    def pop(self) -> Any:
        """Take the topmost object. Raises Unverifiable where the real machine would underflow."""
        if not self.stack or self.stack[-1] is MARK:
            raise Stumble(f"the stack runs empty at byte {self.at}")
        return self.stack.pop()

    def items(self) -> list[Any]:
        """Take all down to the mark."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is MARK:
                taken = self.stack[place + 1 :]
                del self.stack[place:]
                return self.stored(taken)
        raise Stumble(f"a mark is missing at byte {self.at}")

    def top(self) -> Any:
        """Return the topmost object."""
        if not self.stack or self.stack[-1] is MARK:
            raise Stumble(f"the stack runs empty at byte {self.at}")
        return self.stack[-1]

    def filled(self) -> Any:
        """Return the topmost object, which is about to be filled; what is no object of the stream's own is an issue."""
        target = self.top()
        if isinstance(target, Global):
            self.warn(Level.DANGEROUS, f"changes {target.full} itself, for all who use it")
        elif isinstance(target, Made) and rules.unseen(target):
            raise Unverifiable(f"what {target.of} gives is filled, and may be any object, at byte {self.at}")
        return target

    def stored(self, values: list[Any]) -> list[Any]:
        """Return the values that are about to be stored or passed; a callable whose arguments go unseen is an issue."""
        for value in values:
            if not rules.may_hand_on(value):
                self.warn(Level.DANGEROUS, f"hands on {value.full}, to be called where no scan sees its arguments")
        return values

    def _into(self, values: list[Any]) -> None:
        target = self.filled()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Made):
            target.held.extend(values)
        elif not isinstance(target, Global):
            raise Unverifiable(f"items are added to a {type(target).__name__} at byte {self.at}")

    def _append(self, _: None) -> None:
        self._into(self.stored([self.pop()]))

    def _appends(self, _: None) -> None:
        self._into(self.items())

    def _additems(self, _: None) -> None:
        values = self.items()
        check_keys(values, self.at, self.scan.meter.step)
        self._into(values)

    def _pairs(self, values: list[Any]) -> None:
        if len(values) % 2:
            raise Stumble(f"a key without a value at byte {self.at}")
        check_keys(values[::2], self.at, self.scan.meter.step)
        target = self.filled()
        if isinstance(target, Items):
            if target.closed:
                raise Unverifiable(f"a table that was judged is changed at byte {self.at}")
            target.pairs.extend(zip(values[::2], values[1::2], strict=True))
        elif isinstance(target, Made):
            target.held.extend(zip(values[::2], values[1::2], strict=True))
        elif not isinstance(target, (list, Global)):
            raise Unverifiable(f"keys are set in a {type(target).__name__} at byte {self.at}")

    def _setitem(self, _: None) -> None:
        value, key = self.pop(), self.pop()
        self._pairs(self.stored([key, value]))

    def _setitems(self, _: None) -> None:
        self._pairs(self.items())

    def _mark(self, _: None) -> None:
        self.stack.append(MARK)

    def _pop(self, _: None) -> None:
        if not self.stack:
            raise Stumble(f"the stack runs empty at byte {self.at}")
        self.stack.pop()

    def _pop_mark(self, _: None) -> None:
        self.items()

    def _dup(self, _: None) -> None:
        self.stack.append(self.top())

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self.items()))

    def _tuple_of(self, count: int) -> None:
        taken = [self.pop() for _ in range(count)]
        self.stack.append(tuple(self.stored(taken[::-1])))

    def _tuple1(self, _: None) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: None) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: None) -> None:
        self._tuple_of(3)

    def _empty_tuple(self, _: None) -> None:
        self.stack.append(())

    def _empty_list(self, _: None) -> None:
        self.stack.append([])

    def _list(self, _: None) -> None:
        self.stack.append(self.items())

    def _empty_dict(self, _: None) -> None:
        self.stack.append(Items())

    def _dict(self, _: None) -> None:
        values = self.items()
        self.stack.append(Items())
        self._pairs(values)

    def _empty_set(self, _: None) -> None:
        self.stack.append(Made("builtins.set"))

    def _frozenset(self, _: None) -> None:
        values = self.items()
        check_keys(values, self.at, self.scan.meter.step)
        self.stack.append(Made("builtins.frozenset", tuple(values)))

    def _get(self, arg: object) -> None:
        if not isinstance(arg, int) or arg not in self.memo:
            raise Stumble(f"memo entry {arg} is read before it is written, at byte {self.at}")
        self.stack.append(self.memo[arg])

    _binget = _long_binget = _get

    def _put(self, arg: int) -> None:
        if not 0 <= arg <= LARGEST_MEMO:
            raise Unverifiable(f"memo entry {arg} at byte {self.at}")
        self.memo[arg] = self.top()

    _binput = _long_binput = _put

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.top()
