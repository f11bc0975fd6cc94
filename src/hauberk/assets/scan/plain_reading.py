"""How plain pickle reads a stream of joblib: on into an array, where most often it fails, and what runs before it does counts.

Behind the wrapper of an array of objects joblib starts a second pickle with a memo of its own. Plain pickle goes on with the memo
it has, so the first thing the array refers back to (entry 3, `numpy`, for `numpy.dtype`) is whatever stands there in the outer
pickle: an estimator, a number, the key of a dictionary. What the real machine refuses there is a Stumble, and ends the reading.
"""

from __future__ import annotations

import re
from typing import Any

from hauberk.assets.scan.allowlist import Use
from hauberk.assets.scan.machine import Machine
from hauberk.assets.scan.values import MARK, Global, Items, Made
from hauberk.assets.scan.verdict import Level, Stumble

_WORD = re.compile(r"[^\W_][\w \-]*")
# Importing these does something, though they hold nothing.
_ACTING = frozenset({"antigravity", "this"})
_VALUES = (bool, int, float, bytes, bytearray, tuple, list, type(None), Items, type(MARK))
_NO_TEXT = frozenset(
    """builtins.set builtins.frozenset builtins.dict builtins.list builtins.tuple builtins.int builtins.float numpy.dtype
    collections.OrderedDict numpy._core.multiarray._reconstruct numpy.core.multiarray._reconstruct""".split()  # noqa: SIM905
)


class PlainReading(Machine):
    """The machine of plain pickle on a stream that joblib reads in another way."""

    def import_name(self, module: object, name: object) -> None:
        """Push a name, judged; where the real machine is given no text, it fails."""
        if self._no_text(module) or self._no_text(name):
            raise Stumble(f"a name of something that is no text at byte {self.at}")
        if name == "dtype" and isinstance(module, str) and self._dtype_of(module):
            # There is no such module, or it has no dtype, or that is the one of NumPy: go on as if it were.
            self.stack.append(Global("numpy", "dtype", self.scan.judge("numpy", "dtype")))
            return
        super().import_name(module, name)

    def call(self, callee: object, args: object) -> None:
        """Push what a call would give; a call of a number, a text or a container fails, and so does an array of text shape."""
        if isinstance(callee, (str, *_VALUES)):
            raise Stumble(f"a {type(callee).__name__} is called at byte {self.at}")
        shape = args[0] if isinstance(args, tuple) and args else None
        if isinstance(callee, Global) and callee.full == "numpy.ndarray" and isinstance(shape, str) and shape:
            # The class stands where the dtype of an array in the array is called.
            raise Stumble(f"numpy.ndarray is given a text for a shape at byte {self.at}")
        super().call(callee, args)

    def _dtype_of(self, module: str) -> bool:
        """Whether asking a module for its dtype does nothing else: it is imported already, or it is a word and no file here."""
        if self.scan.judge(module, "dtype").level is Level.SAFE:
            return False
        known = any(isinstance(one, Global) and one.module == module and self._listed(one) for one in self.memo.values())
        return known or (_WORD.fullmatch(module) is not None and module not in _ACTING and not self._beside(module))

    def _beside(self, word: str) -> bool:
        """Whether a module of this name lies in the folder of the file: it would be run."""
        folder = self.scan.folder
        return folder is not None and any(
            one.name == word or (one.name.startswith(f"{word}.") and one.suffix in (".py", ".pyc", ".so", ".pyd"))
            for one in folder.iterdir()
        )

    def _no_text(self, value: Any) -> bool:
        """Whether a stand-in is for something that is certainly no text."""
        if isinstance(value, Made):
            return value.of in _NO_TEXT or self._listed(Global(*value.of.rpartition(".")[::2], self._judged(value.of)))
        return isinstance(value, _VALUES) or (isinstance(value, Global) and self._listed(value))

    def _judged(self, full: str) -> Any:
        module, _, name = full.rpartition(".")
        return self.scan.judge(module, name)

    def _listed(self, one: Global) -> bool:
        """Whether a name is a class of the list; what a user vouches for may be anything."""
        return one.full not in self.scan.allowed and one.ruling.level is Level.SAFE and one.ruling.use is Use.CLASS
