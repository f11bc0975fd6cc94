"""More ways past a scan, each of which once came out as safe. Payloads are harmless and nothing is ever loaded."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
from corpus.asm import BENIGN, EVIL, OLD, Ref, encode, four, name, protobuf, short, varint, zipped

from hauberk.assets.scan import Level, Limits, scan_bytes

WRAPPER = name("joblib.numpy_pickle", "NumpyArrayWrapper")
NEW = WRAPPER + b")\x81"
RUN = name("os", "system") + short("true") + b"\x85R"
LINEAR, RELU = name("torch.nn.modules.linear", "Linear"), name("torch.nn.functional", "relu")
SAME = name("torch.jit._pickle", "build_intlist")  # gives back its argument


def dtype(kind: str) -> bytes:
    return name("numpy", "dtype") + encode((kind, False, True)) + b"R"


def described(count: int, more: bytes = b"") -> bytes:
    """The state of joblib's wrapper around an array of bytes."""
    return (b"}(" + short("subclass") + name("numpy", "ndarray") + short("shape") + b"K" + bytes([count]) + b"\x85"
            + short("order") + short("C") + short("dtype") + dtype("u1") + short("allow_mmap") + b"\x89" + more + b"u")


def laundered(wrapper: bytes) -> bytes:
    """joblib skips five bytes behind a wrapper and runs the rest; whoever does not know it for one reads a long constant."""
    return b"\x80\x04" + wrapper + described(5) + b"bB" + struct.pack("<I", len(RUN) + 1) + RUN + b".0."


def framed() -> bytes:
    """A frame ends within an opcode: joblib reads its array behind the frame, and the opcode's argument behind the array."""
    after = b"0" + RUN + b"0."
    inside = bytearray(struct.pack("<I", 20) + b"a" * 20)
    inside[21], inside[22] = 0x43, len(after) + 1
    frame = NEW + described(20) + b"bB"
    raw = struct.pack("<I", 16 + len(inside) + len(after) + 1) + b"z" * 15 + b"C"
    return b"\x80\x04\x95" + struct.pack("<Q", len(frame)) + frame + raw + bytes(inside) + after + b"00."


def beyond_stop() -> bytes:
    """A frame reaches beyond STOP: the next pickle starts behind it for a reader, and a long constant for a scan."""
    hidden = b"\x80\x04B" + struct.pack("<I", len(EVIL))
    return b"\x80\x04\x95" + struct.pack("<Q", 2 + len(hidden)) + b"N." + hidden + EVIL + b"."


NESTED = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x04" + NEW + b".\x80\x02].")
PICKLES = {
    **{f"same, {one}": laundered(name("torch.jit._pickle", one) + NEW + b"\x85R") for one in (
        "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")},
    "same, tag": laundered(name("torch.jit._pickle", "restore_type_tag") + NEW + short("x") + b"\x86R"),
    "new, tree": laundered(name("sklearn.neighbors._kd_tree", "newObj") + WRAPPER + b"\x85R"),
    "new, ball": laundered(name("sklearn.neighbors._ball_tree", "newObj") + WRAPPER + b"\x85R"),
    "new, metric": laundered(name("sklearn.metrics._dist_metrics", "newObj") + WRAPPER + b"\x85R"),
    "nested": laundered(name("torch.storage", "_load_from_bytes") + b"C" + bytes([len(NESTED)]) + NESTED + b"\x85R"),
    "state": laundered(name("torch._utils", "_set_obj_state") + SAME + NEW + b"\x85R" + encode(({}, None)) + b"\x86R"),
    "parameter": laundered(name("torch._utils", "_rebuild_parameter") + NEW + b"\x89N\x87R"),
    "patched class": four(SAME + LINEAR + b"\x85R}" + short("forward") + RELU + b"sb"),
    "patched by state": four(name("torch._utils", "_set_obj_state")
                             + SAME + LINEAR + b"\x85R}" + short("forward") + RELU + b"s\x86R"),
    "patched module": four(SAME + name("torch.nn.modules.activation", "F") + b"\x85R}" + short("relu") + RELU + b"sb"),
    "patched table": four(SAME + name("sklearn.neural_network._base", "ACTIVATIONS") + b"\x85R"
                          + short("relu") + RELU + b"s"),
    "patched by key": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x04(C\x06module" + LINEAR
    + b"NNtQ}"
    + short("forward") + RELU + b"sb.\x80\x02].",
    "dtype": four(SAME + dtype("V8") + b"\x85R" + encode((3, "|", None, None, None, 8, 8, 63)) + b"b"),
    "array": four(SAME + name("numpy._core.multiarray", "_reconstruct") + encode((Ref("numpy", "ndarray"), (0,), b"b"))
    + b"R\x85R"
                  + b"(K\x01K\x09\x85" + dtype("O8") + b"\x89C\x01xtb"),
    "called class": four(name("numpy.random._pickle", "__generator_ctor") + b"K\x03" + LINEAR + b"\x86R"),
    "called class, old": four(name("numpy.random._pickle", "__randomstate_ctor") + b"K\x03" + LINEAR + b"\x86R"),
    "method of the wrapper": b"\x80\x04" + NEW + described(5, short("read") + LINEAR) + b"babcde.",
    "frame beyond STOP": beyond_stop(), "frame over an array": framed(),
    "frame beyond the file": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_pickles_that_readers_follow_elsewhere(content: bytes) -> None:
    assert not scan_bytes(content).safe


def _text_tar(member: str, content: bytes) -> bytes:
    """A tar archive that is text from its first byte to its last."""
    head = bytearray(b" " * 512)
    head[:100] = member.encode().ljust(100, b"/")
    head[100:157] = b"0000644 0000000 0000000 %011o 00000000000         0" % len(content)
    head[148:156] = b"%06o  " % sum(head[:148] + b" " * 8 + head[156:])
    return bytes(head[:512]) + content + b" " * (-len(content) % 512)


def _template(text: str) -> bytes:
    return json.dumps({"chat_template": text}).encode()


def _onnx(node: bytes, key: bytes = b"\x3a") -> bytes:
    graph = protobuf(1, node)
    return (protobuf(1, 8) + protobuf(2, b"p") + protobuf(7, protobuf(2, b"g")) + protobuf(8, protobuf(2, 13)) + key
            + varint(len(graph)) + graph)


def _script(**more: bytes) -> bytes:
    members = {"data.pkl": BENIGN, "version": b"3\n", "code/__torch__.py": b"def f(self):\n  return 1\n", "constants.pkl": BENIGN}
    return zipped({f"archive/{key}": one for key, one in (members | more).items()})


U = '{% set u = "a_b"[1] %}'
BYTECODE = pickle.dumps((7, ("f", (("instructions", (("OP", 0, 0),)), ("operators", (("aten::from_file", "", 3),))))))
FILES = {
    "pickle.jinja": OLD, "tar.txt": _text_tar("pickle", OLD), "tar.csv": _text_tar("storages", OLD),
    "tag.yaml": b"a: !!python/object/apply:os.system ['true']\n", "new.yml": b"- !!python/object/new:os.system\n  - true\n",
    "handle.yaml": b"%TAG ! tag:yaml.org,2002:python/\n---\n!object/apply:os.system ['true']\n",
    "verbatim.yaml": b"a: !<tag:yaml.org,2002:python/object/apply:os.system> [true]\n",
    "hydra.yaml": b"model:\n  _target_: os.system\n", "class.yaml": b"class_path: os.system\n",
    "remote.yaml": b"trust_remote_code: true\n", "yaml.zip": zipped({"c.yaml": b"a: !!python/name:os.system\n"}),
    "jinja.zip": zipped({"a.jinja": OLD}), "tar.zip": zipped({"a.txt": _text_tar("pickle", OLD)}),
    "auto-list.json": b'{"auto_map": ["tok.Tok", null]}', "auto-text.json": b'{"auto_map": "tok.Tok"}',
    "modules.json": b'[{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}]',
    "reduce.json": b'{"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["true"]}]}',
    "object.json": b'{"py/object": "os.system"}',
    "model_index.json": b'{"_class_name": "X", "_diffusers_version": "1", "unet": ["my_unet", "U"]}',
    "class.json": b'{"class_path": "os.system"}', "remote.json": b'{"trust_remote_code": "true"}',
    "templates.json": b'{"chat_template": {"default": "{{ x.__class__ }}"}}',
    "set.json": _template(U + '{% set join = cycler[u~u~"init"~u~u]["os"]["popen"] %}{{ join("true") }}'),
    "namespace.json": _template(U + '{% set ns = namespace(split=x["os"]["popen"]) %}{{ ns.split("true") }}'),
    "table.json": _template('{% set t = {"split": x["os"]["popen"]} %}{{ t.split("true") }}'),
    "percent.json": _template('{{ cycler["%c%cinit%c%c"%(95,95,95,95)] }}'),
    "passed.json": _template('{% macro f(x, k) %}{{ x[k] }}{% endmacro %}{{ f(cycler, "a_b"[1] ~ "a_b"[1] ~ "init") }}'),
    "looped.json": _template(U + '{% for k in [u ~ u ~ "init"] %}{{ x[k] }}{% endfor %}'),
    "sum.json": _template(U + '{{ x[u+u+"init"+u+u].os.replace("a","b") }}'),
    "mapped.json": _template(U + '{{ [x]|map(attribute=u~u~"init")|list }}'),
    "joined.json": _template(U + '{{ x[[u,u,"init"]|join] }}'),
    "wide-key.onnx": _onnx(protobuf(4, b"X") + protobuf(7, b"evil"), b"\xba\x80\x80\x80\x10"),
    "triton.onnx": _onnx(protobuf(4, b"TritonOp") + protobuf(7, b"com.microsoft")),
    "long.onnx": _onnx(protobuf(4, b"X") + protobuf(7, b"e" * 70_000)),
    "phone.ptl": _script(**{"bytecode.pkl": BYTECODE}),
    "classes.pt": _script(**{"code/__torch__.py": b"def f(self):\n  return torch.classes.evil.Foo(1)\n"}),
    "class-in-pickle.pt": _script(**{"data.pkl": b"\x80\x02c__torch__.torch.classes.evil\nFoo\n)\x81}b."}),
}


@pytest.mark.parametrize("file", FILES)
def test_files_that_name_code_in_other_ways(file: str) -> None:
    assert not scan_bytes(FILES[file], name=file).safe


HONEST = {
    "config.yaml": b"lr: 0.1\nname: !!str 3  # wow! fine\nnote: Hello!\ntrust_remote_code: false\n",
    "a.jinja": b"{{ messages[0]['role'] }}",
    "modules.json": b'[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]',
    "model_index.json": b'{"_class_name": "X", "_diffusers_version": "1", "unet": ["diffusers", "UNet"], "f": [null, null]}',
    "config.json": b'{"trust_remote_code": false, "auto_map": null}', "quantized.pt": _script(**{
        "code/__torch__.py": b"def f(self):\n  return __torch__.torch.classes.quantized.LinearPackedParamsBase\n"}),
    "index.json": _template('{% for m in messages[::-1] %}{% set i = (messages|length - 1) - loop.index0 %}'
                            '{{ messages[i]["role"] }}'
                            '{{ messages[loop.index0 + 1].content.split("</a>")[-1] + "\\n" }}{% endfor %}'),
    "keys.json": _template('{% macro r(d, h) %}{% for k in d if k not in h %}{{ "<" ~ k ~ ">" ~ d[k]|tojson }}'
                           '{% endfor %}{% endmacro %}'
                           '{{ r(tool, ["type"]) }}{% set names = {"a": "b"} %}{{ names[x.type] }}'),
}


@pytest.mark.parametrize("file", HONEST)
def test_honest_files_of_the_same_kinds_stay_safe(file: str) -> None:
    found = scan_bytes(HONEST[file], name=file)
    assert found.safe, found.issues


def test_keys_that_repeat_a_large_tuple_do_not_hold_up_the_scan() -> None:
    body = four(b"(" + b"N" * 9000 + b"t\x94}" + b"h\x00Ns" * 100_000)
    (issue,) = scan_bytes(body, limits=Limits(opcodes=200_000)).issues
    assert issue.level is Level.UNVERIFIABLE and "instructions" in issue.what


def test_objects_with_functions_and_types_of_their_defaults_are_safe() -> None:
    import torch
    from sklearn.feature_selection import SelectKBest
    from sklearn.frozen import FrozenEstimator
    from sklearn.linear_model import LinearRegression

    weights = [torch.nn.Parameter(torch.ones(2, 2))]
    for made in (SelectKBest(), FrozenEstimator(LinearRegression()), torch.optim.Adafactor(weights), torch.float8_e8m0fnu):
        found = scan_bytes(pickle.dumps(made))
        assert found.safe, found.issues
