"""What is no model but lies beside one, and what is known by its first bytes and cannot be followed here: said by name."""

from __future__ import annotations

from typing import BinaryIO

from hauberk.assets.scan.keras import scan_config
from hauberk.assets.scan.manifests import parsed, scan_manifest, scan_yaml
from hauberk.assets.scan.polyglot import BLOCK, is_tar
from hauberk.assets.scan.scanner import Scan, file_format
from hauberk.assets.scan.verdict import Level, Unverifiable

# First bytes, and what they tell. Packed by a method that the standard library cannot undo, or a format without a walker here.
_CLOSED = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!\x1a\x07": "a RAR archive", b"\x28\xb5\x2f\xfd": "packed by Zstandard",
    b"\x04\x22\x4d\x18": "packed by LZ4", b"\x02\x21\x4c\x18": "packed by LZ4", b"LZIP": "packed by lzip",
    b"\xff\x06\x00\x00sNaPpY": "packed by snappy",
    b"MSCF": "a cabinet archive", b"!<arch>\n": "an ar archive", b"ARROW1": "an Arrow file", b"PAR1": "a Parquet file",
    b"LMGC": "a Core ML file", b"\xac\xed\x00\x05": "a serialised Java object", b"RDX": "an R object",
    b"ggml": "a ggml file of before GGUF",
    b"ggjt": "a ggml file of before GGUF", b"ZF": "packed by joblib of before 0.10",
}
_PROGRAMS = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xfe\xed\xfa\xcf", b"\xca\xfe\xba\xbe", b"#!", b"\0asm")
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
SOURCES = frozenset({".py", ".pyc", ".sh", ".bat", ".ps1", ".so", ".dll", ".dylib", ".pyd", ".exe", ".js", ".lua", ".rb", ".pl",
                     ".ipynb", ".jar"})
TEXTS = frozenset({".md", ".txt", ".rst", ".license", ".gitattributes", ".gitignore", ".csv", ".tsv", ".toml", ".cfg",
                   ".ini", ".yaml", ".yml"})
_TEXT_BYTES = bytes([*range(32, 127), *b"\r\n\t"])


def _closed(head: bytes, size: int) -> bool:
    return head.startswith(tuple(_CLOSED)) or head[4:8] == b"TFL3"


@file_format("closed", _closed, carries_code=True, rank=2)
def scan_closed(scan: Scan, source: BinaryIO, where: str) -> None:
    """Say what it is that cannot be looked into."""
    head = source.read(16)
    what = next((words for magic, words in _CLOSED.items() if head.startswith(magic)), "a TensorFlow Lite file")
    raise Unverifiable(f"it is {what}, which is not looked into here; unpack it and scan what it holds")


@file_format("program", lambda head, size: head.startswith(_PROGRAMS), carries_code=True, rank=2)
def scan_program(scan: Scan, source: BinaryIO, where: str) -> None:
    """Compiled code and scripts are code, whoever made them."""
    scan.issue(Level.UNKNOWN, where, "it is a program")


@file_format("image", lambda head, size: head.startswith(_IMAGES), carries_code=False, rank=2)
def scan_image(scan: Scan, source: BinaryIO, where: str) -> None:
    """An image beside a model: no reader of models opens it; that it is nothing else besides was asked before."""


@file_format("json", lambda head, size: head.lstrip()[:1] in (b"{", b"["), carries_code=False, rank=8)
def scan_json_file(scan: Scan, source: BinaryIO, where: str) -> None:
    """A configuration: layers of Keras, code that a hub would fetch, chat templates, places of weights."""
    content = source.read(scan.limits.header + 1)
    if len(content) > scan.limits.header:
        raise Unverifiable(f"JSON of more than {scan.limits.header} bytes")
    scan.meter.spend(len(content))
    made = parsed(content)
    scan_config(scan, made, where)
    scan_manifest(scan, made, where)


def by_name(scan: Scan, source: BinaryIO, where: str, ending: str) -> str:
    """Judge a file that its name tells more of than its content; return its format, or nothing."""
    if ending in SOURCES:
        scan.issue(Level.UNKNOWN, where, "it is source or compiled code")
        return "source"
    if ending in TEXTS and is_text(source):
        if ending in (".yaml", ".yml"):
            scan_yaml(scan, source, where)
        return "text"
    if ending == ".jinja" and is_text(source):
        from hauberk.assets.scan.templates import LARGEST, scan_template

        source.seek(0)
        scan_template(scan, source.read(LARGEST + 1).decode("utf-8"), where)
        return "template"
    return ""


def is_text(source: BinaryIO) -> bool:
    """Whether a file is text to its last byte, and no pickle of the oldest protocol, which is text as well."""
    from hauberk.assets.scan.opcodes import imports

    source.seek(0)
    if is_tar(source.read(BLOCK)):  # a header of spaces and digits is text as well
        return False
    source.seek(0)
    first = True
    while part := source.read(2**18):
        if part.translate(None, _TEXT_BYTES) and not _utf8(part, first):
            return False
        first = False
    found = not imports(source, and_calls=True)
    source.seek(0)
    return found


def _utf8(part: bytes, first: bool) -> bool:
    """Whether a stretch is UTF-8 without control characters, but for a character cut at either end."""
    try:
        text = part.decode("utf-8")
    except UnicodeDecodeError as error:
        if (first and error.start < 4) or 4 <= error.start < len(part) - 4:
            return False
        text = part.decode("utf-8", "ignore")
    return all(one.isprintable() or one in "\r\n\t\u200d\ufe0f\u00a0" or one.isspace() for one in text)
