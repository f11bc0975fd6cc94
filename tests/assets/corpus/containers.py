"""Formats around arrays, graphs and layers: what each can be made to run or to read."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import struct
import zlib

import numpy as np

from corpus.archives import npy
from corpus.asm import BENIGN, EVIL, OLD, Call, Ref, call, encode, gguf, hdf5, protobuf, torch_zip, zipped

PACKERS = {"gz": lambda raw: gzip.compress(raw, mtime=0), "zlib": zlib.compress, "bz2": bz2.compress, "xz": lzma.compress,
           "lzma": lambda raw: lzma.compress(raw, format=lzma.FORMAT_ALONE)}


def keras(layer: dict[str, object]) -> dict[str, object]:
    """A sequential model of one layer."""
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": [layer]}, "registered_name": None}


LAYERS: dict[str, dict[str, object]] = {
    "lambda": {"module": "keras.layers", "class_name": "Lambda", "config": {"function": {
        "class_name": "__lambda__", "config": {"value": base64.b64encode(b"code").decode()}}}},
    "lambda-2": {"class_name": "Lambda", "config": {"function": ["4wEAAAA=", None, None], "function_type": "lambda"}},
    "function": {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"},
    "class": {"module": "os", "class_name": "system", "config": {}, "registered_name": None},
    "eval": {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"},
    "utils": {"module": "keras.utils", "class_name": "function", "config": "get_file", "registered_name": "function"},
    "saved": {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "elsewhere"}},
    "torch": {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": "x"}},
    "spec": {"class_name": "__typespec__", "config": {}, "module": "os"},
    "vocabulary": {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
    "own": {"module": "mypackage.layers", "class_name": "Net", "config": {}, "registered_name": "mypackage>Net"},
    "deep": {"module": "keras.layers", "class_name": "Dense", "config": {"activation": {
        "module": "subprocess", "class_name": "function", "config": "Popen"}}},
    "models": {"module": "keras.models", "class_name": "function", "config": "load_model", "registered_name": "function"},
}


def onnx(location: str = "", *, domain: bytes = b"", op: bytes = b"Relu", more: bytes = b"") -> bytes:
    """A model of one node and one tensor."""
    node = protobuf(1, b"x") + protobuf(2, b"y") + protobuf(4, op) + (protobuf(7, domain) if domain else b"")
    tensor = protobuf(2, 1) + protobuf(8, b"w")
    if location:
        entry = protobuf(1, b"location") + protobuf(2, location.encode())
        tensor = protobuf(1, 4) + tensor + protobuf(13, entry) + protobuf(14, 1)
    else:
        tensor = protobuf(1, 1) + tensor + protobuf(9, bytes(4))
    graph = protobuf(1, node) + protobuf(2, b"g") + protobuf(5, tensor)
    return protobuf(1, 8) + protobuf(2, b"me") + protobuf(7, graph) + protobuf(8, protobuf(2, 20)) + more


TEMPLATES = {
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}", "attr": "{{ ''|attr('join') }}", "string": "{{ x['__class__'] }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('true') }}", "import": "{% import 'os' as os %}",
    "call": "{{ lipsum() }}",
    "hex": "{{ x['\\x5f\\x5fclass\\x5f\\x5f'] }}", "include": "{% include '/etc/passwd' %}", "filter": "{{ '%c'|format(95) }}",
    "self": "{{ self._TemplateReference__context }}", "subscript-call": "{{ x['a']('b') }}", "open": "{{ '{{' }}{% for",
    "joiner": "{{ popen('x') }}",
}


def joblib_raw(raw: bytes) -> bytes:
    """A joblib array whose raw bytes are a pickle for those who do not step over them."""
    state = {"subclass": Ref("numpy", "ndarray"), "shape": (len(raw),), "order": "C", "dtype": Call(
        Ref("numpy", "dtype"), ("u1", False, True), (3, "|", None, None, None, -1, -1, 0)), "allow_mmap": True}
    body = encode(Call(Ref("joblib.numpy_pickle", "NumpyArrayWrapper"), (), state, new=True))
    return b"\x80\x04" + body + raw + b"."


def containers() -> dict[str, bytes]:
    """Return every container by its name."""
    made: dict[str, bytes] = {f"joblib-{name}.joblib": pack(EVIL) for name, pack in PACKERS.items()}
    made |= {f"joblib-old-{name}.joblib": pack(OLD) for name, pack in PACKERS.items()}
    made |= {f"torch-{name}.pkl": pack(torch_zip(EVIL)) for name, pack in PACKERS.items()}
    made |= {
        "joblib-raw.joblib": joblib_raw(OLD[:-1] + b"0" + b"N" * 17),
        "joblib-packed-raw.joblib": zlib.compress(joblib_raw(OLD[:-1] + b"0N")),
        "objects.npy": npy(EVIL, "|O"), "objects-old.npy": npy(OLD, "|O"), "fields.npy": npy(EVIL, [("a", "|O")]),
        "tail.npy": npy(bytes(8)) + EVIL, "cut.npy": npy(bytes(4)), "shape.npy": npy(b"", shape=(2**40, 2**40)),
        "header.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H",
            90) + b"{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': ()}".ljust(90),
        "long-header.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31 - 1) + b"{}",
        "minus.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 9000) + b"-" * 9000,
        "objects.npz": zipped({"x.npy": npy(bytes(8)), "y.npy": npy(EVIL, "|O")}), "pickle.npz": zipped({"x.npy": EVIL}),
        "beside.npz": zipped({"x.npy": npy(bytes(8)), "y.pkl": EVIL}),
    }
    made |= {f"{name}.keras": zipped({"metadata.json": b'{"keras_version": "3.0.0"}',
        "config.json": json.dumps(keras(layer)).encode(),
                                      "model.weights.h5": hdf5({})}) for name, layer in LAYERS.items()}
    made |= {f"{name}.h5": hdf5({"model_config": json.dumps(keras(layer)), "keras_version": "2.12.0"}) for name,
        layer in LAYERS.items()}
    made |= {
        "no-config.keras": zipped({"metadata.json": b"{}", "config.json": b"[]", "model.weights.h5": hdf5({})}),
        "pickle-beside.keras": zipped({"metadata.json": b"{}", "config.json": json.dumps(keras(LAYERS["own"])).encode(),
            "a.pkl": EVIL}),
        "pickled-attribute.h5": hdf5({"FILTERS": OLD.decode()}), "tables.h5": hdf5({"PYTABLES_FORMAT_VERSION": "2.1"}),
        "external-link.h5": hdf5({}, links=struct.pack("<BHB", 6, 21, 0) + b"\x01\x08\x40\x01x" + struct.pack("<H",
            14) + b"\x00/etc/passwd\x00a"),
        "external-data.h5": hdf5({}, more=struct.pack("<BHB", 7, 8, 0) + bytes(8)),
        "virtual.h5": hdf5({}, more=struct.pack("<BHB", 8, 8, 0) + b"\x04\x03" + bytes(6)),
        "dense.h5": hdf5({}, more=struct.pack("<BHB", 0x15, 18, 0) + b"\x00\x00" + bytes(16)), "cut.h5": hdf5({"a": "b"})[:-20],
        "config-is-no-json.h5": hdf5({"model_config": "{"}), "lambda-config.json": json.dumps(keras(LAYERS["lambda"])).encode(),
    }
    made |= {
        "traversal.onnx": onnx("../../etc/passwd"), "absolute.onnx": onnx("/etc/passwd"), "windows.onnx": onnx("C:\\x"),
        "inner.onnx": onnx("a/../../b"),
        "backslash.onnx": onnx("..\\x"), "domain.onnx": onnx(domain=b"my.plugin"),
        "python.onnx": onnx(domain=b"com.microsoft", op=b"PythonOp"),
        "context.onnx": onnx(domain=b"com.microsoft", op=b"EPContext"),
        "import.onnx": onnx(more=protobuf(8, protobuf(1, b"my.domain"))), "cut.onnx": onnx()[:-3],
        "function.onnx": onnx(more=protobuf(25, protobuf(1, b"f") + protobuf(7, protobuf(4, b"X") + protobuf(7, b"my.plugin")))),
        "training.onnx": onnx(more=protobuf(20, protobuf(2, protobuf(1, protobuf(4, b"X") + protobuf(7, b"my.plugin"))))),
        "length.onnx": onnx() + b"\x3a\xff\xff\xff\xff\x7f", "no-graph.onnx": protobuf(1, 8) + protobuf(2, b"me"),
        "wire.onnx": onnx() + b"\x3b",
    }
    made |= {f"template-{name}.gguf": gguf({"tokenizer.chat_template": text}) for name, text in TEMPLATES.items()}
    made |= {f"template-{name}.json": json.dumps({"chat_template": text}).encode() for name, text in TEMPLATES.items()}
    good = gguf({"a": "b"})
    made |= {
        "version.gguf": gguf({}, 99), "cut.gguf": good[:40], "count.gguf": good[:8] + struct.pack("<Q", 2**60) + good[16:],
        "tail.gguf": good + EVIL,
        "keys.gguf": good[:16] + struct.pack("<Q", 2**60) + good[24:],
        "text.gguf": good[:24] + struct.pack("<Q", 2**60) + good[32:],
    }
    made |= {
        "auto-map.json": b'{"auto_map": {"AutoModel": "model.Net"}}', "trust.json": b'{"trust_remote_code": true}',
        "hydra.json": b'{"model": {"_target_": "os.system", "x": 1}}',
        "weights.json": b'{"weight_map": {"a": "../../etc/passwd"}}',
        "twice.json": b'{"a": 1, "a": 2}', "deep.json": b"[" * 100_000,
        "pipeline.json": b'{"custom_pipelines": {"x": {"impl": "evil.py"}}}',
        "source.py": b"import os\n", "script.sh": b"#!/bin/sh\ntrue\n", "elf.so": b"\x7fELF" + bytes(60),
        "elf": b"\x7fELF" + bytes(60), "pe.dat": b"MZ" + bytes(60),
        "template.jinja": TEMPLATES["mro"].encode(), "lite.tflite": b"\x1c\x00\x00\x00TFL3" + bytes(24),
        "image.png": b"\x89PNG\r\n\x1a\n" + zipped({"a.pkl": EVIL}),
        "gif.gif": b"GIF89a00" + b"0" + EVIL[2:],
    }
    for loader, module, attribute in (("TypeNode", "os", "system"), ("ObjectNode", "subprocess", "Popen"),
        ("FunctionNode", "os", "system"),
                                      ("MethodNode", "mypackage", "Net"), ("ObjectNode", "mypackage.nets", "Net")):
        schema = {"__module__": module, "__class__": attribute, "__loader__": loader, "content": {}, "protocol": 2}
        made[f"{loader}-{module}.skops"] = zipped({"schema.json": json.dumps(schema).encode()})
    made["object.skops"] = zipped({"schema.json": json.dumps({"__module__": "numpy", "__class__": "ndarray",
        "__loader__": "NdArrayNode",
                                                              "file": "a.npy"}).encode(), "a.npy": npy(EVIL, "|O")})
    script = {"archive/constants.pkl": b"\x80\x02).", "archive/version": b"3\n"}
    made |= {f"script-{key}.pt": zipped({"archive/data.pkl": BENIGN, "archive/code/__torch__.py": code, **script}) for key,
        code in {
        "save": b"torch.save(x, 'a')", "file": b"torch.from_file('/etc/passwd')", "library": b"ops.mine.run(x)",
        "setstate": b"def __setstate__(self, x): pass",
        "rpc": b"ops.prim.rpc_sync('a', 'b')", "hidden": b"(torch . # x\n save)(x)",
        "getattr": b"getattr(torch, 'save')"}.items()}
    exported = {"m/models/model.json": b'{"graph_module": {}}', "m/archive_format": b"pt2", "m/.data/version": b"3\n"}
    config = {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
    made |= {
        "guards.pt2": zipped({**exported, "m/models/model.json": b'{"guards_code": ["__import__(\'os\').system(\'true\')"]}'}),
        "expression.pt2": zipped({**exported,
            "m/models/model.json": b'{"r": {"expr_str": "__import__(\'os\').system(\'true\')"}}'}),
        "weights.pt2": zipped({**exported, "m/data/weights/a_config.json": json.dumps(config).encode(),
            "m/data/weights/weight_0": EVIL}),
        "library.pt2": zipped({**exported, "m/data/aotinductor/model.so": b"\x7fELF" + bytes(60)}),
        "sample.pt2": zipped({**exported, "m/data/sample_inputs/model.pt": torch_zip(EVIL)}),
    }
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'
    made |= {
        "overlap.safetensors": struct.pack("<Q", len(text)) + text + bytes(6),
        "length.safetensors": struct.pack("<Q", 2**60) + b"{}",
        "tail.safetensors": struct.pack("<Q", 2) + b"{}" + EVIL,
        "twice.safetensors": struct.pack("<Q", 17) + b'{"a":{},"a":{} }\n',
        "renamed.pkl": call("os", "system", "true"),
    }
    buffer = io.BytesIO()
    np.savez(buffer, x=np.arange(3))
    made["prefix.npz"] = EVIL + buffer.getvalue()
    return made
