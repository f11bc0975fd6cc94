"""Files as the libraries write them by default; pandas' by hand, since it is not installed with the tests."""

from __future__ import annotations

import collections
import datetime
import gzip
import io
import json
import pickle
import struct
import tarfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import nn

from corpus.asm import Call, Ref, encode, gguf, hdf5_old, zipped
from corpus.containers import keras
from corpus.streams import tarred


def _torch(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(12, 4))


def torch_saves() -> dict[str, bytes]:
    """State dicts, whole modules, optimisers, schedules, adapters."""
    model = _net()
    made: dict[str, bytes] = {}
    values: dict[str, object] = {"state": model.state_dict(), "module": model, "tensor": torch.eye(3),
        "parameter": nn.Parameter(torch.ones(2))}
    values |= {"lstm": nn.LSTM(3, 4).state_dict(), "transformer": nn.TransformerEncoderLayer(8, 2),
        "embedding": nn.Embedding(4, 3)}
    values["types"] = {str(one): torch.ones(2).to(one) for one in (torch.float16, torch.bfloat16, torch.int8, torch.bool,
        torch.complex64)}
    values |= {"sparse": torch.eye(3).to_sparse(), "generator": torch.get_rng_state(),
        "nested": [{"a": (torch.ones(1), None)}, {1, 2}]}
    values["lora"] = {f"base.layers.{index}.q.lora_{side}.weight": torch.zeros(2, 3) for index in range(3) for side in "AB"}
    values["views"] = {"a": (base := torch.arange(9.0)), "b": base[2:5], "c": base.view(3, 3).t()}
    values["ordered"] = collections.OrderedDict(a=torch.ones(1))
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad):
        optimizer = kind(model.parameters(), lr=0.1)
        model(torch.zeros(2, 1, 4, 4)).sum().backward()
        optimizer.step()
        values[f"optimizer-{kind.__name__.lower()}"] = optimizer.state_dict()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    values["checkpoint"] = {
        "epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
        "loss": np.float64(0.1), "best": float("inf"), "args": {"lr": 0.1, "device": torch.device("cpu")},
        "size": torch.Size([1, 2]),
    }
    for key, value in values.items():
        made[f"torch-{key}.pt"] = _torch(value)
    for key in ("state", "module", "checkpoint", "lora"):
        made[f"legacy-{key}.pt"] = _torch(values[key], _use_new_zipfile_serialization=False)
    made["tensors.pkl"] = pickle.dumps(model.state_dict())
    return made


def numpy_saves() -> dict[str, bytes]:
    """Arrays, by NumPy itself and pickled, with the module paths of both major versions."""
    def saved(function: Callable[..., None], *args: Any, **named: Any) -> bytes:
        buffer = io.BytesIO()
        function(buffer, *args, **named)
        return buffer.getvalue()

    value = {"a": np.arange(6).reshape(2, 3), "f": np.float32(1), "s": np.array(["x", "yy"]),
        "d": np.array(["2020-01-01"], dtype="M8[D]"),
             "t": np.zeros(2, [("a", "f4"), ("b", "i8")]), "o": np.array([{}, 1], dtype=object), "m": np.ma.zeros(2)}
    made = {f"arrays-{protocol}.pkl": pickle.dumps(value, protocol) for protocol in range(6)}
    for protocol in (0, 2):
        now = pickle.dumps(value, protocol)
        made[f"arrays-numpy1-{protocol}.pkl"] = now.replace(b"numpy._core", b"numpy.core")
    made |= {"random.pkl": pickle.dumps(np.random.default_rng(0)),
        "state.pkl": pickle.dumps(np.random.RandomState(0).get_state())}
    made |= {"a.npy": saved(np.save, value["a"]), "f.npy": saved(np.save, np.asfortranarray(value["a"])),
        "t.npy": saved(np.save, value["t"]),
             "o.npy": saved(np.save, value["o"], allow_pickle=True),
             "z.npz": saved(np.savez, **{key: value[key] for key in "afs"}),
             "c.npz": saved(np.savez_compressed, **{key: value[key] for key in "afdt"})}
    return made


def plain_saves() -> dict[str, bytes]:
    """Values of the standard library."""
    value = {"list": [1, 2.5, None, True, "é", b"\0"], "dates": [datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)],
             "sets": {frozenset({1})}, "counts": collections.Counter("ab"), "default": collections.defaultdict(list, a=[1]),
             "deep": ((), [[[]]])}
    return {f"plain-{protocol}.pkl": pickle.dumps(value, protocol) for protocol in range(6)}


def sklearn_saves() -> dict[str, bytes]:
    """Fitted estimators, pickled and by joblib in all its compressions; skops."""
    import joblib
    import skops.io
    from sklearn.cluster import KMeans
    from sklearn.compose import ColumnTransformer
    from sklearn.datasets import load_iris
    from sklearn.decomposition import PCA
    from sklearn.ensemble import (
        GradientBoostingClassifier,
        HistGradientBoostingClassifier,
        IsolationForest,
        RandomForestClassifier,
    )
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    x, y = load_iris(return_X_y=True)
    estimators = (
        LogisticRegression(max_iter=50), SGDClassifier(), RandomForestClassifier(2), GradientBoostingClassifier(n_estimators=1),
        HistGradientBoostingClassifier(max_iter=1), SVC(), GaussianNB(), MLPClassifier((2,), max_iter=5),
        KNeighborsClassifier(algorithm="kd_tree"),
        KMeans(2, n_init=1), PCA(2), IsolationForest(n_estimators=2), DecisionTreeClassifier(), Ridge(),
        GaussianProcessClassifier(),
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=50)), GridSearchCV(Ridge(), {"alpha": [1, 2]}, cv=2),
        make_pipeline(ColumnTransformer([("a", StandardScaler(), [0]), ("b", OneHotEncoder(), [1])]), DecisionTreeClassifier()),
    )
    made = {}
    for index, one in enumerate(estimators):
        fitted = one.fit(x[::5], y[::5])
        made[f"{index}-{type(one).__name__}.pkl"] = pickle.dumps(fitted)
        if index in (0, 2, 6):
            for form in (0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)):
                buffer = io.BytesIO()
                joblib.dump(fitted, buffer, compress=form)
                made[f"{index}-{form[0] if isinstance(form, tuple) else form}.joblib"] = buffer.getvalue()
    made["forest.skops"] = skops.io.dumps(estimators[2])
    made["pipeline.skops"] = skops.io.dumps(estimators[-3])
    return made


def graph_saves() -> dict[str, bytes]:
    """TorchScript, an exported program, ONNX."""
    import onnx

    model = _net().eval()
    x = torch.zeros(2, 1, 4, 4)
    made = {}
    for key, script in (("script", torch.jit.script(model)), ("trace", torch.jit.trace(model, x)),
                        ("frozen", torch.jit.freeze(torch.jit.script(model))), ("lstm", torch.jit.script(nn.LSTM(2, 2)))):
        buffer = io.BytesIO()
        torch.jit.save(script, buffer)
        made[f"{key}.pt"] = buffer.getvalue()
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),)), buffer)
    made["program.pt2"] = buffer.getvalue()
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = helper.make_tensor("w", kind, [2], [1.0, 2.0])
    ends = [helper.make_tensor_value_info(name, kind, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    made["add.onnx"] = helper.make_model(graph).SerializeToString()
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    made["external.onnx"] = helper.make_model(helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])).SerializeToString()
    return made


_DTYPE = (3, "<", None, None, None, -1, -1, 0)


def _array(values: Any) -> Call:
    values = np.asarray(values)
    objects = values.dtype == object
    dtype = Call(Ref("numpy", "dtype"), ("O8" if objects else values.dtype.str[1:], False, True),
                 (3, "|", None, None, None, -1, -1, 63) if objects else _DTYPE)
    start = Call(Ref("numpy.core.multiarray", "_reconstruct"), (Ref("numpy", "ndarray"), (0,), b"b"))
    return Call(start.ref, start.args, (1, values.shape, dtype, False, list(values) if objects else values.tobytes()))


def pandas_saves() -> dict[str, bytes]:
    """A table, a column and an index, as pandas 2 pickles them."""
    def index(values: Any) -> Call:
        named = {"data": _array(values), "name": None}
        return Call(Ref("pandas.core.indexes.base", "_new_Index"), (Ref("pandas.core.indexes.base", "Index"), named))

    rows = Call(Ref("pandas.core.indexes.base", "_new_Index"), (
        Ref("pandas.core.indexes.range", "RangeIndex"), {"name": None, "start": 0, "stop": 2, "step": 1}))
    block = Call(Ref("pandas._libs.internals", "_unpickle_block"), (
        _array(np.ones((1, 2))), Call(Ref("builtins", "slice"), (0, 1, 1)), 2))
    columns = index(np.array(["a"], dtype=object))
    manager = Call(Ref("pandas.core.internals.managers", "BlockManager"), ((block,), [columns, rows]))
    state = {"_mgr": manager, "_typ": "dataframe", "_metadata": [], "attrs": {}, "_flags": {"allows_duplicate_labels": True}}
    frame = Call(Ref("pandas.core.frame", "DataFrame"), (), state, new=True)
    one = Call(Ref("pandas._libs.internals", "_unpickle_block"),
        (_array(np.ones(2)), Call(Ref("builtins", "slice"), (0, 2, 1)), 1))
    column = Call(Ref("pandas.core.internals.managers", "SingleBlockManager"), (one, rows))
    series = Call(Ref("pandas.core.series", "Series"), (), {**state, "_mgr": column, "_typ": "series", "_name": "a"}, new=True)
    return {f"pandas-{key}.pkl": b"\x80\x04" + encode(value) + b"." for key, value in
            (("frame", frame), ("series", series), ("index", columns), ("range", rows), ("both", [frame, series]))}


def _h5(attributes: dict[str, str]) -> bytes:
    return hdf5_old(attributes, struct.pack("<HHB3x", 1, 8, 0) + b"\x01" + bytes(7))  # an object with the shape of one number


CHAT = """{% for message in messages %}{% if message['role'] == 'user' and loop.index0 % 2 == 0 %}
{{ '<|im_start|>' + message['role'] }}
{% elif message.role not in ['system', 'assistant'] %}{{ raise_exception('Roles must alternate') }}{% endif %}
{%- set content = message['content'] | trim -%}{{ content.split('</think>')[-1].lstrip('\\n') ~ message.tool_calls | tojson }}
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def other_saves() -> dict[str, bytes]:
    """safetensors, GGUF, Keras, manifests, and archives of benign files."""
    tensors = {"layer.0.weight": torch.zeros(2, 3), "layer.0.bias": torch.zeros(2)}
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2, "activation": "relu", "kernel_initializer": {
        "module": "keras.initializers", "class_name": "GlorotUniform", "config": {"seed": None}, "registered_name": None}},
        "registered_name": None, "build_config": {"input_shape": [None, 3]}}
    config = json.dumps(keras(dense)).encode()
    whole = save_tensors(tensors, {"format": "pt"})
    return {
        "model.safetensors": whole, "adapter.safetensors": save_tensors({f"a.{side}": torch.zeros(1, 2) for side in "AB"}),
        "half.safetensors": save_tensors({"w": torch.zeros(3, dtype=torch.bfloat16)}),
        "plain.gguf": gguf({"general.name": "net"}),
        "chat.gguf": gguf({"tokenizer.chat_template": CHAT}),
        "tokenizer_config.json": json.dumps({"chat_template": CHAT}).encode(),
        "model.keras": zipped({"metadata.json": b'{"keras_version": "3.9.0"}', "config.json": config,
            "model.weights.h5": _h5({})}),
        "model.h5": _h5({"model_config": config.decode(), "keras_version": "2.12.0", "backend": "tensorflow"}),
        "weights.h5": _h5({"backend": "torch"}),
        "config.json": b'{"architectures": ["BertModel"], "hidden_size": 8}', "README.md": "# Net\nÜber models.\n".encode(),
        "model.safetensors.index.json": b'{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}',
        "all.zip": zipped({"model.safetensors": whole, "config.json": b"{}", "README.md": b"# Net\n"}),
        "all.tar": tarred({"model/model.safetensors": whole, "model/config.json": b"{}"}),
        "pax.tar": tarred({"d/" * 80 + "model.safetensors": whole}, form=tarfile.PAX_FORMAT),
        "all.tar.gz": gzip.compress(tarred({"model.safetensors": whole}), mtime=0),
        "model.safetensors.gz": gzip.compress(whole, mtime=0),
    }


def benign() -> dict[str, bytes]:
    """Return every benign save by its name."""
    makers = {"torch": torch_saves, "numpy": numpy_saves, "plain": plain_saves, "sklearn": sklearn_saves, "graph": graph_saves,
              "pandas": pandas_saves, "other": other_saves}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fits that stop early, and TorchScript, which torch calls old
        return {f"{kind}-{name}": content for kind, make in makers.items() for name, content in make().items()}
