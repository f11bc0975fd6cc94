"""`__setstate__` in TorchScript, which runs while torch loads the file: allowed is that of a quantised convolution, line by line.

It puts the parts of its state into attributes of its own and hands weight and bias to `set_weight_bias` of its own class, which
packs them. Packing is what torch does itself for packed weights that come as objects. Nothing loops, nothing else is called, and
no line may give one of the names that calls go through (`ops`, `torch`, `self`) another meaning.
"""

from __future__ import annotations

import re

_NAME = r"(?!(?:ops|torch|self|state|annotate|uninitialized)\b)[A-Za-z_]\w*"
_ATOM = rf"(?:{_NAME}|\d{{1,9}})"
_LIST = rf"\[{_ATOM}(?:, {_ATOM})*\]"
_OWN = r"__torch__(?:\.\w+)+"
_KEEPS = rf"self\.{_NAME} = \(state\)\[\d{{1,3}}\]"
_HANDS_ON = rf"{_NAME} = \(self\)\.set_weight_bias\(\(state\)\[\d{{1,3}}\], \(state\)\[\d{{1,3}}\], \)"
_PACKS = "|".join((
    rf"{_NAME} = self\.{_NAME}", rf"(?:{_NAME}, )+= {_NAME}", rf"{_NAME} = {_LIST}",
    rf"{_NAME} = ops\.quantized\.conv(?:_transpose)?[123]d_prepack\((?:{_ATOM}|{_LIST})(?:, (?:{_ATOM}|{_LIST}))*\)",
    rf"self\._packed_params = {_NAME}", rf"if torch\.eq\({_NAME}, \"zeros\"\):", "else:",
))
_SETSTATE = re.compile(
    rf"  def __setstate__\(self: {_OWN},\n    state: Tuple\[[\w\[\], ]+\]\) -> NoneType:\n"
    rf"(?:    (?:{_KEEPS}|{_HANDS_ON})\n)+    return None\n", re.ASCII,
)
_SET_WEIGHT = re.compile(
    rf"  def set_weight_bias\(self: {_OWN},\n    w: Tensor,\n    b: Optional\[Tensor\]\) -> NoneType:\n"
    rf"(?:    (?:  )?(?:{_PACKS})\n)+    return None\n", re.ASCII,
)
# Whatever could make a line something else than it looks: texts over several lines, continuations, comments, decorators.
_UNCLEAR = re.compile(r"[\\#@\t\r\f\v]|\"\"\"|'''|[^\x00-\x7f]|\x00")
_ITEM = re.compile(r"^[^ \n].*\n(?:(?: .*)?\n)*", re.MULTILINE)
_METHOD = re.compile(r"  def (\w+)\(.*\n(?:    .*\n)*", re.ASCII)
_CLASS = re.compile(
    r"class \w+\(Module\):\n(?:  \w+ : [^\n=]+\n|  __\w+__ = \[[^\n\[\]]*\]\n)*(?P<methods>(?:  def \w+\(.*\n(?:    .*\n)*)+)\n*",
    re.ASCII,
)


def packing_states(text: str) -> frozenset[int]:
    """Return where a member of `code/` names a `__setstate__` that keeps and packs, and does nothing else."""
    if "__setstate__" not in text or _UNCLEAR.search(text):
        return frozenset()
    found = set()
    for item in _ITEM.finditer(text if text.endswith("\n") else text + "\n"):
        made = _CLASS.fullmatch(item.group())  # every line of it is an attribute's or a method's
        if made is None:
            continue
        methods = [*_METHOD.finditer(item.group(), made.start("methods"))]
        names = [one[1] for one in methods]
        if names != re.findall(r"\bdef\s+(\w+)", item.group(), re.ASCII):
            continue  # a method that is written in another way, or a text that holds one
        if names.count("__setstate__") != 1 or names.count("set_weight_bias") != 1:
            continue
        state, weight = (methods[names.index(name)] for name in ("__setstate__", "set_weight_bias"))
        if _SETSTATE.fullmatch(state.group()) and _SET_WEIGHT.fullmatch(weight.group()):
            found.add(item.start() + state.start() + len("  def "))
    return frozenset(found)
