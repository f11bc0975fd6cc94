"""Keras: a model is JSON that names layers, and a layer may be code (Lambda), any importable function, or a path to read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hauberk.assets.scan.manifests import walk
from hauberk.assets.scan.verdict import Level

if TYPE_CHECKING:
    from hauberk.assets.scan.scanner import Scan

_ROOT = r"(keras|tf_keras|tensorflow\.keras|tensorflow\.python\.keras)"
_INNER = r"(\.src|\.api|\._tf_keras\.keras)?"
_CLASSES = re.compile(
    _ROOT + _INNER + r"(\.(layers|models|initializers|optimizers|losses|metrics|regularizers|constraints|dtype_policies"
    r"|activations|random|quantizers|engine|applications|callbacks)(\.\w+)*)?"
)
_FUNCTIONS = re.compile(_ROOT + _INNER + r"\.(activations|losses|metrics|initializers|regularizers|constraints)(\.\w+)*")
_PLAIN = frozenset({"__keras_tensor__", "__numpy__", "__tensor__", "__tuple__", "__ellipsis__", "__dict__", "__bytes__",
                    "__complex__", "__slice__", "__set__"})
_CODE = {
    "Lambda": "runs Python bytecode or a named function", "__lambda__": "holds Python bytecode",
    "TFSMLayer": "loads another model from a path", "TorchModuleWrapper": "loads a pickle",
    "__typespec__": "imports a class by name",
    "JaxLayer": "calls a Python function", "FlaxLayer": "calls a Python function",
}
_NAME = re.compile(r"[A-Za-z_]\w{0,99}")


def is_keras(content: Any) -> bool:
    """Whether JSON describes a model of Keras."""
    return isinstance(content, dict) and isinstance(content.get("class_name"), str) and "config" in content


def scan_config(scan: Scan, content: Any, where: str) -> None:
    """Judge every object that a configuration of Keras would make; other JSON passes unseen."""
    if not is_keras(content) and not (isinstance(content, dict) and is_keras(content.get("model_config"))):
        return
    scan.holds("Keras model")
    for node in walk(content):
        name = node.get("class_name")
        if isinstance(name, str) and "config" in node:
            _object(scan, node, name, where)
        for key in ("vocabulary", "idf_weights"):
            if isinstance(node.get(key), str):
                scan.issue(Level.DANGEROUS, where, f"reads its {key} from the file {node[key][:120]!r}")


def _object(scan: Scan, node: dict[str, Any], name: str, where: str) -> None:
    module, registered = node.get("module"), node.get("registered_name")
    shown = f"{module}.{name}"[:160] if isinstance(module, str) else name[:160]
    scan.refers(shown)
    if name in _CODE:
        scan.issue(Level.DANGEROUS, where, f"the layer {shown} {_CODE[name]}")
    elif name == "function":
        target = node.get("config")
        target = target if isinstance(target, str) else str(target)
        if not isinstance(module, str) or not _FUNCTIONS.fullmatch(module) or not _NAME.fullmatch(target):
            builtin = module in (None, "builtins") and _NAME.fullmatch(target) and registered in (None, "function", target)
            if builtin and module is None:
                return
            scan.issue(Level.DANGEROUS, where, f"calls the function {str(module)[:80]}.{target[:80]}")
    elif name in _PLAIN:
        return
    elif (module is not None and (not isinstance(module, str) or not _CLASSES.fullmatch(module))) or not _NAME.fullmatch(name):
        scan.issue(Level.UNKNOWN, where, f"imports {shown}")
    elif isinstance(registered, str) and ">" in registered and not registered.startswith("keras"):
        scan.issue(Level.UNKNOWN, where, f"makes the class {registered[:120]!r} of somebody's own")
