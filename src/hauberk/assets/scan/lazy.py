"""Layers that wait for their first input (`LazyLinear`): two methods of their own that a pickle fetches by name, and their hooks.

`getattr` is allowed for these two names alone, on a layer that was just made empty: what comes back is the method of torch's
class, bound to that layer. It may be kept, as the hook it is; a call or a filling of it is refused like that of any made object.
Had an attribute of that name been set before, it would be another value of the stream, judged when it came.
"""

from __future__ import annotations

import re
from typing import Any

from hauberk.assets.scan.values import Items, Made

METHODS = ("_infer_parameters", "_lazy_load_hook")
HANDLE = "torch.utils.hooks.RemovableHandle"
_LAZY = re.compile(r"torch\.nn\.modules\.(batchnorm|conv|instancenorm|linear)\.Lazy[A-Z]\w*")


def method(args: tuple[Any, ...]) -> str:
    """Refuse `getattr` of anything but the two methods of a lazy layer that holds nothing yet."""
    fine = (
        len(args) == 2 and isinstance(args[0], Made) and _LAZY.fullmatch(args[0].of) and args[0].state is None
        and not args[0].held and isinstance(args[1], str) and args[1] in METHODS
    )
    return "" if fine else "looks up something else than a method of a layer that waits for its first input"


def handle(state: object) -> str:
    """Refuse what torch does not fill a hook's handle with: it adds 1 to its number and keeps that for the whole process."""
    parts = state if isinstance(state, tuple) and len(state) in (2, 3) else ()
    fine = len(parts) >= 2 and _hooks(parts[0]) and type(parts[1]) is int and 0 <= parts[1] < 2**31
    more = (parts[2] or ()) if len(parts) == 3 else ()
    return "" if fine and isinstance(more, tuple) and all(map(_hooks, more)) else "is filled as torch does not"


def _hooks(value: object) -> bool:
    return value is None or isinstance(value, Items) or (isinstance(value, Made) and value.of == "collections.OrderedDict")
