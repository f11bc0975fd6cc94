"""Obfuscated ONNX: the same answers from files that tell less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hauberk.assets.obfuscate import add_onnx_decoys, mix_onnx, new_key, onnx_selector, split_onnx, strip_onnx
from hauberk.assets.obfuscate.files import lock_onnx, unlock_onnx
from hauberk.assets.obfuscate.onnx_reader import read_onnx
from hauberk.assets.obfuscate.similarity import graph_similarity, name_leakage, onnx_nodes
from hauberk.core.errors import DataError, ModelError, UsageError

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
KEY = bytes(range(32))


def _weights() -> dict[str, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(0)
    shapes = {
        "stem.weight": (8, 3, 3, 3), "stem.bias": (8,), "deep.weight": (8, 1, 3, 3), "deep.bias": (8,), "norm.scale": (8,),
        "norm.shift": (8,), "norm.mean": (8,), "left.weight": (8, 8, 1, 1), "wide.weight": (20, 8 * 16), "wide.bias": (20,),
        "product.weight": (20, 12), "product.bias": (12,), "out.weight": (5, 12), "out.bias": (5,),
    }
    made = {
        name: (draw.standard_normal(shape) / max(1, np.prod(shape[1:])) ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    made["norm.var"] = (draw.random(8) + 0.5).astype(np.float32)
    return made


@pytest.fixture(scope="module")
def model() -> Any:
    """Convolution, norm, depthwise layer, shortcut, pool, flatten, two kinds of products, and the graph's own texts."""
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["image", "stem.weight", "stem.bias"], ["a"], name="/stem/Conv", pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["a", "norm.scale", "norm.shift", "norm.mean", "norm.var"], ["b"], name="/norm/BatchNorm"),
        make("Relu", ["b"], ["c"], name="/Relu"),
        make("Conv", ["c", "deep.weight", "deep.bias"], ["d"], name="/deep/Conv", pads=[1, 1, 1, 1], group=8),
        make("Conv", ["c", "left.weight"], ["e"], name="/left/Conv"),
        make("Add", ["d", "e"], ["f"], name="/Add"),
        make("Relu", ["f"], ["g"], name="/Relu_1"),
        make("MaxPool", ["g"], ["h"], name="/MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        make("Flatten", ["h"], ["i"], name="/Flatten", axis=1),
        make("Gemm", ["i", "wide.weight", "wide.bias"], ["j"], name="/wide/Gemm", transB=1),
        make("Relu", ["j"], ["k"], name="/Relu_2"),
        make("MatMul", ["k", "product.weight"], ["l"], name="/product/MatMul"),
        make("Add", ["l", "product.bias"], ["m"], name="/product/Add"),
        make("Sigmoid", ["m"], ["n"], name="/Sigmoid"),
        make("Gemm", ["n", "out.weight", "out.bias"], ["logits"], name="/out/Gemm", transB=1),
    ]
    tensor = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes, "secret_architecture", [onnx.helper.make_tensor_value_info("image", tensor, ["batch", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", tensor, ["batch", 5])],
        [onnx.numpy_helper.from_array(value, name) for name, value in _weights().items()], doc_string="made by the vision team",
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    made = onnx.helper.make_model(graph, producer_name="in-house", opset_imports=opset, ir_version=10)
    onnx.helper.set_model_props(made, {"dataset": "internal-2026"})
    onnx.checker.check_model(made)
    return made


X = np.random.default_rng(1).standard_normal((6, 3, 8, 8)).astype(np.float32)


def _run(model: Any, **more: Any) -> np.ndarray[Any, Any]:
    onnx.checker.check_model(model)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": X, **more})[0])


def test_a_stripped_model_answers_the_same_bit_for_bit_and_says_nothing(model: Any) -> None:
    made = strip_onnx(model)
    assert np.array_equal(_run(made), _run(model))
    text = made.SerializeToString()
    for word in (b"secret", b"vision", b"in-house", b"internal", b"stem", b"wide", b"weight", b"/Relu", b"batch"):
        assert word not in text and (word in model.SerializeToString())
    assert graph_similarity(onnx_nodes(model), onnx_nodes(made)) == pytest.approx(1.0)  # renaming hides no structure
    assert not made.graph.value_info and [one.name for one in made.graph.input] == ["image"]


def test_mixed_weights_of_every_layer_compute_the_same(model: Any) -> None:
    made, channels = mix_onnx(model)
    before, after = _run(model), _run(made)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    changed = {a.name for a, b in zip(model.graph.initializer, made.graph.initializer, strict=True) if a.raw_data != b.raw_data}
    assert changed == set(_weights()) - {"out.bias"}
    assert sum(channels.moves(edit.units) for edit in channels.edits) >= 14


def test_what_is_not_understood_stays_as_it_is(model: Any) -> None:
    odd = onnx.ModelProto()
    odd.CopyFrom(model)
    odd.graph.node[6].op_type = "Softmax"  # over the units: their order matters to nothing that was read
    channels = read_onnx(odd)
    rows = [edit for edit in channels.edits if edit.tensor in ("deep.bias", "left.weight") and edit.axis == 0]
    assert rows and not any(channels.moves(edit.units) for edit in rows)
    made, _ = mix_onnx(odd)
    assert np.allclose(_run(made), _run(odd), atol=1e-5)


def test_a_split_model_has_another_structure_and_the_same_answers(model: Any) -> None:
    made = strip_onnx(split_onnx(model))
    before, after = _run(model), _run(made)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    assert graph_similarity(onnx_nodes(model), onnx_nodes(made)) < 0.7
    assert name_leakage([one.name for one in model.graph.initializer], [one.name for one in made.graph.initializer]) == 0.0
    assert made.ByteSize() < 1.1 * model.ByteSize()


def test_a_locked_model_runs_and_is_worth_nothing_without_its_key(model: Any) -> None:
    locked = lock_onnx(model, KEY)
    assert np.abs(_run(locked) - _run(model)).max() > 0.05
    assert {one.key for one in locked.metadata_props} == {"dataset", "hauberk.lock"}
    back = unlock_onnx(locked, KEY)
    assert np.abs(_run(back) - _run(model)).max() <= 1e-5 and {one.key for one in back.metadata_props} == {"dataset"}
    with pytest.raises(UsageError, match="the key does not fit"):
        unlock_onnx(locked, new_key())
    with pytest.raises(DataError, match="not locked"):
        unlock_onnx(model, KEY)
    for facts in ("{}", "[", '{"salt": "zz", "tag": "", "octaves": 3}', '{"salt": "00", "tag": "00", "octaves": 1e9}'):
        broken = lock_onnx(model, KEY)
        onnx.helper.set_model_props(broken, {"hauberk.lock": facts})
        with pytest.raises(DataError, match="lock of the model cannot be read"):
            unlock_onnx(broken, KEY)


def test_decoys_are_chosen_by_an_input_that_a_key_makes(model: Any) -> None:
    made = add_onnx_decoys(model, KEY, growth=0.5)
    right = onnx_selector(made, KEY)
    assert len(right) >= 5 and np.allclose(_run(made, selector=right), _run(model), rtol=0, atol=1e-6)
    wrong = (right + 1) % 4
    assert np.abs(_run(made, selector=wrong) - _run(model)).max() > 0.05
    assert not any(node.op_type in ("If", "Equal", "Greater", "Where") for node in made.graph.node)
    constants = [onnx.numpy_helper.to_array(one) for one in made.graph.initializer if one.data_type == onnx.TensorProto.INT64]
    assert not any(np.array_equal(value, right) for value in constants)
    with pytest.raises(UsageError, match="no decoys"):
        onnx_selector(model, KEY)


def test_files_round_trip(model: Any, tmp_path: Path) -> None:
    import torch

    from hauberk.assets.obfuscate.files import load_locked, read_key, read_names, save_locked, write_key, write_names

    write_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    key = read_key(tmp_path / "key")
    with pytest.raises(UsageError, match="never written over"):
        write_key(tmp_path / "key")
    state = {"a.weight": torch.randn(4, 3), "a.bias": torch.zeros(4)}
    save_locked(state, tmp_path / "w.safetensors", key)
    back = load_locked(tmp_path / "w.safetensors", key)
    assert all(torch.allclose(back[name], value, rtol=3e-7) for name, value in state.items())
    (tmp_path / "broken.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:50])
    with pytest.raises(DataError, match="cannot be read"):
        load_locked(tmp_path / "broken.safetensors", key)
    (tmp_path / "short").write_text("abc")
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        read_key(tmp_path / "short")
    names = {"00ff": ("a.weight", (4, 3))}
    write_names(tmp_path / "names.json", names)
    assert read_names(tmp_path / "names.json") == names
    (tmp_path / "names.json").write_text("[1]")
    with pytest.raises(DataError, match="no map of names"):
        read_names(tmp_path / "names.json")


def _built(nodes: list[Any], shape: tuple[int, ...], out: tuple[int | None, ...], weights: dict[str, Any]) -> Any:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    made = helper.make_model(helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", kind, out)],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    ), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def _drawn(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _ran(model: Any, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def _within() -> Any:
    """Branches that read a value and a weight of the graph around them, in an order that counts."""
    make, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    inner = onnx.helper.make_graph(
        [make("Softmax", ["r"], ["secret_soft"], axis=1), make("Mul", ["secret_soft", "wm"], ["p"])], "secret_then", [],
        [info("p", 1, (3, 16))], value_info=[info("secret_soft", 1, (3, 16))],
    )
    other = onnx.helper.make_graph([make("Identity", ["r"], ["q"])], "secret_else", [], [info("q", 1, (3, 16))])
    nodes = [
        make("Gemm", ["x", "w", "b"], ["h"]), make("Relu", ["h"], ["r"]), make("Gemm", ["r", "v"], ["z"]),
        make("If", ["c"], ["i"], then_branch=inner, else_branch=other), make("MatMul", ["i", "u"], ["j"]),
        make("Add", ["z", "j"], ["y"]),
    ]
    return _built(nodes, (3, 8), (3, 8), {
        "w": _drawn(8, 16), "b": _drawn(16), "v": _drawn(16, 8), "wm": _drawn(16), "u": _drawn(16, 8), "c": np.array(True),
    })


def _one_bias() -> Any:
    make = onnx.helper.make_node
    nodes = [make("Gemm", ["x", "w", "b"], ["h"]), make("Relu", ["h"], ["r"]), make("Gemm", ["r", "v"], ["y"])]
    return _built(nodes, (3, 8), (3, 8), {"w": _drawn(8, 16), "b": _drawn(1), "v": _drawn(16, 8)})


def _norm_then_last_axis() -> Any:
    make = onnx.helper.make_node
    nodes = [make("BatchNormalization", ["x", "s", "t", "m", "n"], ["h"]), make("MatMul", ["h", "w"], ["y"])]
    return _built(nodes, (3, 8, 8), (3, 8, 4), {
        "s": _drawn(8) ** 2, "t": _drawn(8), "m": _drawn(8), "n": _drawn(8) ** 2 + 1, "w": _drawn(8, 4),
    })


def _places_of_maxima() -> Any:
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["h"], pads=[1, 1, 1, 1]),
        make("MaxPool", ["h"], ["p", "i"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Conv", ["p", "v"], ["q"], pads=[1, 1, 1, 1]),
        make("MaxUnpool", ["q", "i"], ["y"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    return _built(nodes, (1, 3, 8, 8), (1, 16, 8, 8), {"w": _drawn(16, 3, 3, 3), "v": _drawn(16, 16, 3, 3)})


@pytest.mark.parametrize("build", [_within, _one_bias, _norm_then_last_axis, _places_of_maxima])
def test_what_reads_units_in_their_order_keeps_the_answers(build: Any) -> None:
    model = build()
    x = _drawn(*(one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim))
    before = _ran(model, x)
    for made in (mix_onnx(model, key=KEY)[0], split_onnx(model), strip_onnx(model), strip_onnx(split_onnx(model))):
        assert np.abs(_ran(made, x) - before).max() <= 1e-5 * np.abs(before).max()
    assert b"secret" not in strip_onnx(model).SerializeToString()  # nor within branches


def test_functions_leave_no_names() -> None:
    make = onnx.helper.make_node
    model = _built([make("Relu", ["x"], ["y"])], (3, 8), (3, 8), {})
    function = onnx.helper.make_function(
        "secret.domain", "SecretBlock", ["a"], ["z"],
        [make("Relu", ["a"], ["secret_inner"]), make("Neg", ["secret_inner"], ["z"])],
        [onnx.helper.make_opsetid("", 17)],
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("secret.domain", 1))
    model.graph.node[0].CopyFrom(make("SecretBlock", ["x"], ["y"], domain="secret.domain"))
    made = strip_onnx(model)
    assert np.array_equal(_ran(made, _drawn(3, 8)), _ran(model, _drawn(3, 8)))
    assert b"ecret_inner" not in made.SerializeToString() and b"SecretBlock" not in made.SerializeToString()


def test_a_lock_that_leaves_the_weights_in_the_open_is_refused() -> None:
    make = onnx.helper.make_node
    quantised = _built([make("DequantizeLinear", ["q", "s"], ["w"]), make("MatMul", ["x", "w"], ["y"])], (3, 8), (3, 16), {
        "q": np.arange(128, dtype=np.int8).reshape(8, 16), "s": np.float32(0.1) * np.ones((), np.float32),
    })
    held = onnx.numpy_helper.from_array(_drawn(8, 16), "w")
    constant = _built([make("Constant", [], ["w"], value=held), make("MatMul", ["x", "w"], ["y"])], (3, 8), (3, 16), {})
    bare = _built([make("Relu", ["x"], ["y"])], (3, 8), (3, 8), {})
    for model in (quantised, constant, bare):
        with pytest.raises(ModelError, match="would stay in the open"):
            lock_onnx(model, KEY)


def test_a_lock_leaves_numbers_that_decide_a_size() -> None:
    make = onnx.helper.make_node
    nodes = [make("Conv", ["x", "w"], ["h"]), make("Resize", ["h", "", "sizes"], ["y"], mode="nearest")]
    sizes = np.array([1, 1, 2, 3], np.float32)
    model = _built(nodes, (1, 3, 8, 8), (1, 8, None, None), {"w": _drawn(8, 3, 3, 3), "sizes": sizes})
    x = _drawn(1, 3, 8, 8)
    locked = lock_onnx(model, KEY)
    assert _ran(locked, x).shape == (1, 8, 12, 18) and not np.allclose(_ran(locked, x), _ran(model, x))
    assert np.allclose(_ran(unlock_onnx(locked, KEY), x), _ran(model, x), rtol=1e-4, atol=1e-5)
