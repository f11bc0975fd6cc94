"""One call, written in every way that the pickle machine knows, and in the ways that hide a name from a search for text."""

from __future__ import annotations

import pickle
import struct

from corpus.asm import BENIGN, EVIL, OLD, Call, Ref, encode, four, name, old_name, short

T = short("true")
GETATTR, IMPORT = name("builtins", "getattr"), name("importlib", "import_module")


def _text(form: str, value: str) -> bytes:
    raw = value.encode()
    return {
        "X": b"X" + struct.pack("<I", len(raw)) + raw, "8c": short(value), "8d": b"\x8d" + struct.pack("<Q", len(raw)) + raw,
        "V": b"V" + raw + b"\n", "Vu": b"V" + b"".join(b"\\u%04x" % one for one in raw) + b"\n", "S": b"S'" + raw + b"'\n",
        "U": b"U" + bytes([len(raw)]) + raw, "T": b"T" + struct.pack("<i", len(raw)) + raw,
        "Sx": b"S'" + b"".join(b"\\x%02x" % one for one in raw) + b"'\n",
    }[form]


class _Reduced:
    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("true",)


class _State:
    def __init__(self) -> None:
        self.inner = _Reduced()

    def __reduce__(self) -> tuple[object, ...]:
        return dict, (), None, None, iter([("a", self.inner)])


def encodings() -> dict[str, bytes]:
    """Return every encoding by its name."""
    system = name("os", "system")
    made = {f"protocol-{number}": pickle.dumps(_Reduced(), number) for number in range(6)}
    made |= {f"nested-{number}": pickle.dumps([1, {"a": _State()}], number) for number in range(6)}
    made |= {
        f"text-{form}": b"\x80\x04" + _text(form, "os") + _text(form, "system") + b"\x93" + T + b"\x85R."
        for form in ("X", "8c", "8d", "V", "Vu", "S", "U", "T", "Sx")
    }
    memo = {
        "memo": b"\x94", "binput": b"q\x07", "long-binput": b"r\x07\x00\x00\x00", "put": b"p7\n",
    }
    gets = {"memo": b"h\x00", "binput": b"h\x07", "long-binput": b"j\x07\x00\x00\x00", "put": b"g7\n"}
    made |= {f"via-{way}": four(short("os") + put + b"0" + gets[way] + short("system") + b"\x93" + T + b"\x85R")
             for way, put in memo.items()}
    made |= {
        "reduce": OLD, "inst": b"(S'true'\nios\nsystem\n.", "obj": b"(cos\nsystem\nS'true'\no.",
        "newobj": four(name("subprocess", "Popen") + T + b"\x85\x81"),
        "newobj-empty": four(name("subprocess", "Popen") + b")\x81"),
        "newobj-ex": four(name("subprocess", "Popen") + T + b"\x85}\x92"),
        "newobj-ex-named": four(name("subprocess", "Popen") + b")}" + short("args") + T + b"s\x92"),
        "build-setstate": four(name("torch", "Tensor") + b")\x81" + system + b"b"),
        "build-slots": four(name("collections", "OrderedDict") + b")R" + b"N}" + short("update") + system + b"s\x86b"),
        "build-on-class": four(name("collections", "OrderedDict") + b"}" + short("x") + b"Nsb"),
        "build-on-module": four(name("sys", "modules") + b"}" + short("os") + b"Nsb"),
        "setitem-on-class": four(name("os", "environ") + short("a") + short("b") + b"s"),
        "ext1": b"\x82\x01.", "ext2": b"\x83\x01\x01.", "ext4": b"\x84\x01\x00\x00\x00.", "ext-called": b"(\x82\x01S'true'\no.",
        "copyreg-add": four(name("copyreg", "add_extension") + b"(" + short("os") + short("system") + b"K\x01tR"),
        "copyreg-pickle": four(name("copyreg", "pickle") + b"(" + system + system + b"tR"),
        "copyreg-reconstructor": four(name("copyreg", "_reconstructor") + system + name("builtins", "object") + b"N\x87R"),
        "copyreg-newobj": four(name("copyreg", "__newobj__") + name("subprocess", "Popen") + T + b"\x86R"),
        "getattr": four(GETATTR + IMPORT + short("os") + b"\x85R" + short("system") + b"\x86R" + T + b"\x85R"),
        "getattr-chain": four(GETATTR + GETATTR + name("builtins",
            "dict") + short("__class__") + b"\x86R" + short("mro") + b"\x86R"),
        "joined": four(GETATTR + IMPORT + b"(" + GETATTR + short("") + short("join") + b"\x86R" + b"](" + short("o") + short("s")
                       + b"e\x85R" + b"tR" + short("system") + b"\x86R" + T + b"\x85R"),
        "numpy-builtins": four(GETATTR + name("numpy", "__builtins__") + short("get") + b"\x86R" + short("eval") + b"\x85R"),
        "dotted": four(short("collections") + short("abc.sys.modules") + b"\x93"),
        "dotted-call": four(short("torch.nn") + short("Module.__init__.__globals__.get") + b"\x93" + short("os") + b"\x85R"),
        "attrgetter": four(name("operator", "attrgetter") + short("system") + b"\x85R" + IMPORT + short("os") + b"\x85R\x85R"),
        "methodcaller": four(name("operator", "methodcaller") + short("system") + T + b"\x86R" + name("os", "sys") + b"\x85R"),
        "partial": four(name("functools", "partial") + system + T + b"\x86R)R"),
        "partial-state": four(name("functools", "partial") + name("builtins", "str") + b"\x85R(" + system + T + b"\x85}}tb)R"),
        "reduce-function": four(name("functools", "reduce") + system + b"](" + T + T + b"e\x86R"),
        "map": four(name("builtins", "list") + name("builtins", "map") + system + b"](" + T + b"e\x86R\x85R"),
        "filter": four(name("builtins", "tuple") + name("builtins", "filter") + system + b"](" + T + b"e\x86R\x85R"),
        "default-factory": four(name("collections", "defaultdict") + system + b"\x85R"),
        "sorted-key": four(name("builtins", "sorted") + b"](" + T + b"e}" + short("key") + system + b"s\x87R"),
        "popped": four(system + T + b"\x85R0N"), "popped-mark": four(b"(" + system + T + b"\x85R1N"),
        "duplicated": four(system + b"2" + T + b"\x85R0" + T + b"\x85R"),
        "after-frame": b"\x80\x04\x95" + struct.pack("<Q", len(EVIL) - 2) + EVIL[2:],
        "wrong-frame": b"\x80\x04\x95" + struct.pack("<Q", 3) + EVIL[2:],
        "deep": four(b"]" * 50 + system + T + b"\x85R" + b"a" * 50), "set-member": four(b"\x8f(" + system + T + b"\x85R\x90"),
        "frozenset-member": four(b"(" + system + T + b"\x85R\x91"), "dictionary-key": four(b"}" + system + T + b"\x85RNs"),
        "persistent": four(b"(" + system + T + b"\x85RtQ"),
        "persistent-module": four(b"(" + short("module") + system + b"NNtQ)R"),
        "buffer": b"\x80\x05\x97" + system + T + b"\x85R\x86.",
        "bytes-loaded": four(name("pickle", "loads") + encode(EVIL) + b"\x85R"),
        "storage-bytes": four(name("torch.storage", "_load_from_bytes") + encode(EVIL) + b"\x85R"),
        "old-python-2": old_name("__builtin__", "apply") + old_name("os", "system") + b"(S'true'\nttR.",
        "old-mapping": old_name("UserDict", "IterableUserDict") + old_name("commands", "getoutput") + b"\x86.",
        "carriage-return": b"cos\r\nsystem\r\n(S'true'\ntR.", "name-with-nul": b"cos\x00\nsystem\n(S'true'\ntR.",
        "unicode-name": four(name("ｏｓ", "system") + T + b"\x85R"), "escaped-name": b"co\\x73\nsystem\n(S'true'\ntR.",
        "rebuild-through": four(name("torch._tensor", "_rebuild_from_type_v2") + b"(" + system + name("torch",
            "Tensor") + T + b"\x85NtR"),
        "hook": encode(Call(Ref("torch._utils", "_rebuild_parameter"),
            (None, True, {"hook": Ref("os", "system")}))).join([b"\x80\x04", b"."]),
        "module-hook": encode(Call(Ref("torch.nn.modules.linear", "Linear"), (), {"_forward_hooks": {1: Ref("os", "system")}},
            True)).join(
            [b"\x80\x04", b"."]),
        "bit-generator": encode(Call(Ref("numpy.random._pickle", "__bit_generator_ctor"),
            (Ref("os", "system"),))).join([b"\x80\x04", b"."]),
        "unicode-codec": four(name("_codecs", "encode") + short("true") + short("rot13") + b"\x86R"),
        "memory": four(name("builtins", "bytearray") + b"\x8a\x05\x00\x00\x00\x00\x10\x85R"),
        "range": four(name("builtins", "list") + name("builtins", "range") + b"J\xff\xff\xff\x7f\x85R\x85R"),
        "second-class": BENIGN + EVIL,
    }
    return {f"{key}.pkl": content for key, content in made.items()}
