"""The code in a TorchScript archive, as text: only operators that compute, and nothing that runs while the file is loaded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hauberk.assets.scan.script_state import packing_states
from hauberk.assets.scan.values import Items, Made
from hauberk.assets.scan.verdict import Level, Unverifiable

if TYPE_CHECKING:
    from hauberk.assets.scan.scanner import Scan

LARGEST = 8 * 2**20
# The language has fewer tokens than Python; a quote or byte that no alternative takes ends as cannot be verified.
_TOKEN = re.compile(
    r"(?P<text>\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')"
    r"|(?P<comment>#[^\n]*)|(?P<name>[A-Za-z_]\w*)|(?P<space>[ \t\r\n\\]+)|(?P<other>[^\"'#A-Za-z_ \t\r\n\\])",
    re.ASCII | re.DOTALL,
)
_NAMESPACES = frozenset({"prim", "aten", "quantized", "torchvision"})
# Operators that reach files, other machines or Python; and the method that runs while torch loads the file.
_DENIED = {
    **dict.fromkeys(("save", "load", "from_file"), "reaches files"),
    **dict.fromkeys(("rpc_async", "rpc_sync", "rpc_remote"), "calls other machines"),
    **dict.fromkeys(("PythonOp", "IgnoredPythonOp"), "calls Python"),
    "__setstate__": "runs while the file is loaded (torch.jit.freeze, before it is saved, leaves it out)",
}
_CLASSES = re.compile(r"\s*\.\s*(quantized|xnnpack|sparse|mkldnn)\b", re.ASCII)  # packed weights
_OPERATOR = re.compile(r"_?(\w+)::(\w+)", re.ASCII)


def scan_bytecode(scan: Scan, value: object, where: str) -> None:
    """Judge the program of a model for phones, `bytecode.pkl`: a pickle of tuples that names its operators as texts."""
    left = [value]
    while left:
        scan.meter.step()
        one = left.pop()
        if isinstance(one, (list, tuple)):
            left.extend(one)
        elif isinstance(one, Items):
            left.extend(part for pair in one.pairs for part in pair)
        elif isinstance(one, Made):
            left.extend([*one.args, one.state, *one.held])
        elif isinstance(one, str) and (found := _OPERATOR.fullmatch(one)):
            if found.group(2) in _DENIED:
                scan.issue(Level.DANGEROUS, where, f"its bytecode calls {one[:80]}, which {_DENIED[found.group(2)]}")
            elif found.group(1) not in _NAMESPACES:
                scan.issue(Level.UNKNOWN, where, f"its bytecode calls operators of the library {found.group(1)[:40]!r}")
    scan.holds("torch.jit.script")


def scan_script(scan: Scan, content: bytes, where: str) -> None:
    """Judge one member of `code/`: what would run when torch loads the file, or when the model is called."""
    if len(content) > LARGEST:
        raise Unverifiable(f"{where} has {len(content)} bytes of code")
    text = content.decode("utf-8")
    place, before, packing = 0, ["", ""], packing_states(text)
    while place < len(text):
        scan.meter.step()
        found = _TOKEN.match(text, place)
        if found is None or (found.lastgroup == "other" and not found.group().isascii()):
            raise Unverifiable(f"the script cannot be read at character {place}")
        place = found.end()
        token = found.group()
        if found.lastgroup in ("space", "comment"):
            continue
        # getattr may reach an operator by a text.
        bare = token.strip("\"'") if found.lastgroup == "text" else token
        if bare in _DENIED and found.lastgroup in ("name", "text") and found.start() not in packing:
            level = Level.UNKNOWN if bare == "__setstate__" else Level.DANGEROUS
            scan.issue(level, f"{where}@{found.start()}", f"its script names {bare}, which {_DENIED[bare]}")
        if before[1] == "ops" and before[0] != "." and token != ".":
            scan.issue(Level.UNKNOWN, f"{where}@{found.start()}", "its script reaches operators in a way that cannot be followed")
        if before == ["ops", "."] and token not in _NAMESPACES:
            scan.issue(Level.UNKNOWN, f"{where}@{found.start()}", f"its script calls operators of the library {token[:40]!r}")
        if before == ["torch", "."] and token == "classes" and not _CLASSES.match(text, place):
            scan.issue(Level.UNKNOWN, f"{where}@{found.start()}", "its script makes objects of classes that a library registers")
        before = [before[1], token]
    scan.holds("torch.jit.script")
