"""JSON inside archives that names code to run: skops' schema, and the programs that torch exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from hauberk.assets.scan.allowlist import Use
from hauberk.assets.scan.verdict import Level, Unverifiable
from hauberk.io.pt2_rules import harmless_expression, troubles

if TYPE_CHECKING:
    from hauberk.assets.scan.scanner import Scan

_PROGRAM = re.compile(r"[^/]+/(models/[^/]+\.json|serialized_exported_program\.json)")
_MOST_TABLES = 2_000_000
_SENTENCE = {"idx", "name", "path", "type"}  # of each part of a sentence-transformers model
_PICKLED = {f"py/{kind}" for kind in ("object", "reduce", "function", "type", "repr", "newargs", "newargsex", "initargs")}
_LIBRARIES = frozenset({"diffusers", "transformers", "onnxruntime", "optimum", "peft", "stable_diffusion", "deepfloyd_if",
                        "wuerstchen", "kandinsky", "audioldm2", "latent_diffusion", "stable_cascade", "flax", "k_diffusion"})
_PER_CHARACTER = 10  # what parsing an expression costs, in steps
_TAG = re.compile(r"(?:^|[\s,\[{])(![<!\w][^\s,\]}]*)", re.MULTILINE)
_PLAIN_TAGS = frozenset("str int float bool null map seq set omap pairs binary timestamp merge value".split())  # noqa: SIM905
# It looks one character back and no further: a file of blank lines must not be gone over once for each of them.
_YAML_KEY = re.compile(
    r"(?<![^\s\-{,?\"'])(_target_|class_path|auto_map|trust_remote_code)[\"']?[ \t]*:[ \t]*([^\s#]*)",
)


def parsed(content: bytes) -> Any:
    """Return parsed JSON. Raises Unverifiable where a name stands twice, or it would grow far beyond its size."""
    if content.count(b"[") + content.count(b"{") > _MOST_TABLES:
        raise Unverifiable(f"JSON of more than {_MOST_TABLES} tables and lists")
    return json.loads(content.decode("utf-8"), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Unverifiable("a name stands twice in the JSON")
    return table


def scan_json(scan: Scan, name: str, content: Any, where: str) -> None:
    """Judge what a JSON member of an archive names."""
    schema = name.split("/")[-1] == "schema.json"
    told: set[str] = set()
    for node in walk(content):
        if schema and "__loader__" in node:
            _skops(scan, node, where)
        expression = node.get("expr_str")
        if isinstance(expression, str) and expression not in told:
            told.add(expression)
            scan.meter.step(_PER_CHARACTER * len(expression))
        if expression is not None and not harmless_expression(expression):
            scan.issue(Level.DANGEROUS, where, f"holds the expression {str(expression)[:80]!r}, which a loader would evaluate")
    if _PROGRAM.fullmatch(name):
        for evaluated, what in troubles(content):
            scan.issue(Level.DANGEROUS if evaluated else Level.UNKNOWN, where, what)


def _skops(scan: Scan, node: dict[str, Any], where: str) -> None:
    loader = node["__loader__"]
    module, name = node.get("__module__"), node.get("__class__")
    content = node.get("content")
    if loader in ("FunctionNode", "TypeNode", "UfuncNode") and isinstance(content, dict):
        module, name = content.get("module_path", module), content.get("function", content.get("class_name", name))
    if not isinstance(module, str) or not isinstance(name, str):
        scan.issue(Level.UNVERIFIABLE, where, f"a node of kind {str(loader)[:40]} names nothing")
        return
    if loader in ("JsonNode", "CachedNode", "SliceNode"):
        return  # plain JSON values and references to other nodes
    ruling = scan.judge(module, name)
    scan.refers(f"{module}.{name}"[:200])
    fine = ruling.use in (Use.CLASS, Use.CALL, Use.VALUE) or (loader in ("FunctionNode", "UfuncNode") and module == "numpy")
    if not fine or (loader in ("MethodNode", "OperatorFuncNode", "ReduceNode") and ruling.use is not Use.CALL):
        worst = Level.DANGEROUS if ruling.level is Level.DANGEROUS else Level.UNKNOWN
        scan.issue(worst, where, f"imports {module}.{name}"[:200])


def scan_manifest(scan: Scan, content: Any, where: str) -> None:
    """Judge what the configurations beside a model name: code to fetch, classes to build, templates, and places of weights."""
    for node in walk(content):
        for key in ("auto_map", "custom_pipelines", "trust_remote_code"):
            if node.get(key):
                scan.issue(Level.UNKNOWN, where, f"{key} names code that a hub would fetch and run: {str(node[key])[:120]}")
        for key in ("_target_", "class_path", "parent_library"):
            if isinstance(node.get(key), str):
                _built(scan, node[key], where)
        if node.keys() >= _SENTENCE and not str(node["type"]).startswith("sentence_transformers."):
            _built(scan, str(node["type"]), where)
        _pipeline(scan, node, where)
        for key in node.keys() & _PICKLED:
            level = Level.UNKNOWN if key in ("py/object", "py/type") else Level.DANGEROUS
            scan.issue(level, where, f"names Python objects by {key!r}: {str(node[key])[:120]}")
        template = node.get("chat_template")
        listed = list(template.values()) if isinstance(template, dict) else template
        for one in listed if isinstance(listed, list) else [listed]:
            text = one.get("template") if isinstance(one, dict) else one
            if isinstance(text, str):
                from hauberk.assets.scan.templates import scan_template

                scan_template(scan, text, f"{where}:chat_template" if where else "chat_template")
        places = node.get("weight_map")
        for place in set(map(str, places.values())) if isinstance(places, dict) else ():
            if place.startswith(("/", "\\")) or ".." in place.replace("\\", "/").split("/") or ":" in place:
                scan.issue(Level.DANGEROUS, where, f"weight_map reads {place[:120]!r} outside its folder")


def _built(scan: Scan, target: str, where: str) -> None:
    module, _, name = target.rpartition(".")
    ruling = scan.judge(module or target, name or "*")
    if ruling.level is not Level.SAFE:
        scan.issue(ruling.level, where, f"builds {target[:160]} by its name")


def _pipeline(scan: Scan, node: dict[str, Any], where: str) -> None:
    """The parts of a diffusers pipeline are pairs of a library, which is imported, and a class of it."""
    if not {"_class_name", "_diffusers_version"} <= node.keys():
        return
    for key, value in node.items():
        pair = isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value)
        if pair and (key == "_class_name" or value[0] not in _LIBRARIES):
            scan.issue(Level.UNKNOWN, where, f"{key[:40]} is made by {value[0][:80]}.{value[1][:80]}")


def scan_yaml(scan: Scan, source: BinaryIO, where: str) -> None:
    """Judge the tags of YAML, which name objects to make, and the keys that frameworks build by."""
    source.seek(0)
    content = source.read(scan.limits.header + 1)
    if len(content) > scan.limits.header:
        raise Unverifiable(f"YAML of more than {scan.limits.header} bytes")
    scan.meter.spend(len(content))
    text = content.decode("utf-8")
    for found in _TAG.finditer(text):
        tag = found.group(1)
        if tag.removeprefix("!!") not in _PLAIN_TAGS:
            level = Level.DANGEROUS if "python/" in tag or tag.startswith("!<") else Level.UNKNOWN
            scan.issue(level, where, f"its YAML makes an object by the tag {tag[:120]!r}")
    for found in _YAML_KEY.finditer(text):
        key, value = found.group(1), found.group(2).strip("\"' ,}")
        if key in ("_target_", "class_path"):
            _built(scan, value, where)
        elif value.lower() not in ("", "false", "null", "no", "off", "~"):
            scan.issue(Level.UNKNOWN, where, f"{key} names code that a hub would fetch and run: {value[:120]}")


def walk(content: Any, limit: int = 5_000_000) -> Iterator[dict[str, Any]]:
    """Yield every table of JSON, however deep; without recursion."""
    left, seen = [content], 0
    while left:
        one = left.pop()
        seen += 1
        if seen > limit:
            raise Unverifiable(f"more than {limit} JSON values")
        if isinstance(one, dict):
            yield one
            left.extend(one.values())
        elif isinstance(one, list):
            left.extend(one)
