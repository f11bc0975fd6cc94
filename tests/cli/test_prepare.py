"""What a plan names is loaded: endpoints, modules beside the plan, tables, devices, normalisation."""

from __future__ import annotations

import functools
import http.server
import json
import pickle
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import Result

import hauberk as hauberk_package
from hauberk import Target, load_data
from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.errors import DataError, ModelError, UnsafeFile, UsageError
from hauberk.io.plan import changed, parse_plan, read_plan
from hauberk.methods import load_methods
from hauberk.planned import Planned, load_plan_data, load_plan_model, prepare
from hauberk.report.lock import preamble, steps
from hauberk.report.report import Report

WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [0.25, 1.0, -1.0]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a linear model in a package, and eight samples of three features."""
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "test.npz", x=draw.random((8, 3)).astype(np.float32), y=np.arange(8) % 2)
    (tmp_path / "shopwindow").mkdir()
    (tmp_path / "shopwindow" / "__init__.py").write_text("")
    (tmp_path / "shopwindow" / "models.py").write_text(
        "import torch\n\n\ndef build():\n    net = torch.nn.Linear(3, 2, bias=False)\n"
        f"    net.weight.data = torch.tensor({WEIGHT.tolist()})\n    return net\n"
    )
    return tmp_path


def plan_in(folder: Path, **tables: Any) -> Any:
    data = {"test": "test.npz", "modality": "tabular", **tables.pop("data", {})}
    return parse_plan({"model": {"path": "shopwindow.models:build"}, "data": data, **tables}, source=folder / "plan.toml")


def test_modules_beside_the_plan_are_found_from_anywhere(folder: Path) -> None:
    target, data, settings = prepare(plan_in(folder))
    x, _ = data.test.first(8)
    assert torch.equal(target.logits(x), x @ WEIGHT.T)
    assert (target.access, target.bounds, data.bounds) == (Access.GRADIENT, (0.0, 1.0), (0.0, 1.0))
    assert [threat.describe() for threat in settings.threats] == ["Linf, ε = 0.1, untargeted"]


def test_threats_radii_gates_and_queries_reach_the_settings(folder: Path) -> None:
    plan = plan_in(
        folder, threat=[{"eps": [0.1, "1/4"]}, {"norm": "l2", "eps": 2, "queries": 77}],
        run={"preset": "thorough", "seed": 9}, gate={"robustness/clean-accuracy": {"min": 0.5}},
    )
    _, _, settings = prepare(plan, True)
    assert [(threat.norm, threat.eps) for threat in settings.threats] == [("linf", 0.25), ("l2", 2.0)]
    assert (settings.radii, settings.queries, settings.trust) == ((0.1, 0.25), 77, True)
    assert (settings.preset, settings.seed, settings.gates) == ("thorough", 9, {"robustness/clean-accuracy": {"min": 0.5}})
    assert prepare(plan_in(folder, threat={"eps": 0.2}))[2].radii == ()


def test_access_is_narrowed(folder: Path) -> None:
    target, _, _ = prepare(plan_in(folder, model={"path": "shopwindow.models:build", "access": "label"}))
    assert target.access is Access.LABEL


def test_normalisation_belongs_to_the_model(folder: Path) -> None:
    model = {"path": "shopwindow.models:build", "normalize": {"mean": [0.1, 0.2, "3/10"], "std": "1/2"}}
    target, data, _ = prepare(plan_in(folder, model=model))
    x, _ = data.test.first(8)
    expected = ((x - torch.tensor([0.1, 0.2, 0.3])) / 0.5) @ WEIGHT.T
    assert torch.allclose(target.logits(x), expected, atol=1e-6)


def test_bounds_per_feature(folder: Path) -> None:
    _, data, _ = prepare(plan_in(folder, data={"bounds": [[0, -1, 0], 2]}))
    low, high = (torch.as_tensor(end) for end in data.bounds)
    assert low.tolist() == [0.0, -1.0, 0.0]
    assert (high == 2).all()


def test_the_material_travels_to_a_worker(folder: Path) -> None:
    material = pickle.loads(pickle.dumps(functools.partial(prepare, plan_in(folder), False)))
    target, data, _ = material()
    assert torch.equal(target.labels(data.test.first(8)[0]), (data.test.first(8)[0] @ WEIGHT.T).argmax(1))


@pytest.mark.parametrize(("tables", "error", "words"), [
    ({"data": {"test": "tset.npz"}}, DataError, "tset.npz does not exist"),
    ({"model": {"path": "shopwindow.models:bild"}}, ModelError, "Did you mean 'build'?"),
    ({"gate": {"robustness/clean-acuracy": {"min": 1}}}, UsageError,
     "plan.toml: gate.\"robustness/clean-acuracy\" names no check. Did you mean 'robustness/clean-accuracy'?"),
])
def test_what_cannot_be_loaded(folder: Path, tables: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as refusal:
        prepare(plan_in(folder, **tables))
    assert words in str(refusal.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"^the device 'cuda' cannot be used .* Expected one of cpu\.$"):
        prepare(plan_in(folder, run={"device": "cuda"}))


class _Endpoint(http.server.BaseHTTPRequestHandler):
    """Answers the linear model's scores to whoever knows the key."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.headers.get("X-Key") == "open sesame" or "/open" in self.path
        scores = (torch.tensor(body["rows"]) @ WEIGHT.T).tolist()
        answer = json.dumps({"out": [{"s": row} for row in scores]} if known else {}).encode()
        self.send_response(200 if known else 403)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The address of a server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/predict"
        server.shutdown()
        thread.join()


def test_an_endpoint_is_described_by_its_table(folder: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "url": endpoint, "template": '{"rows": "$INPUT"}', "response": "out[*].s", "headers": {"X-Key": "SHOP_KEY"},
        "timeout": 5.0, "batch_size": 3,
    }
    plan = plan_in(folder, model=table)
    target, data, _ = prepare(plan)
    x, _ = data.test.first(8)
    monkeypatch.delenv("SHOP_KEY", raising=False)
    with pytest.raises(UsageError, match="SHOP_KEY"):
        target.logits(x)
    monkeypatch.setenv("SHOP_KEY", "open sesame")
    assert torch.allclose(target.logits(x).float(), x @ WEIGHT.T, atol=1e-6)
    assert (target.access, target.ledger.queries, target.ledger.calls) == (Access.SCORE, 8, 3)
    with pytest.raises(UsageError, match=r"^model\.access is 'gradient', but this model can give score alone\."):
        prepare(plan_in(folder, model={**table, "access": "gradient"}))
    with pytest.raises(UsageError, match=r"run\.device is 'cuda', but this model runs where it is"):
        prepare(plan_in(folder, model=table, run={"device": "cuda"}))


def test_what_belongs_to_an_endpoint_needs_one() -> None:
    with pytest.raises(UsageError, match="Expected template, response, headers and classes with a url alone"):
        parse_plan({"model": {"path": "a.py:b", "headers": {"X": "Y"}}, "data": {"test": "t"}})


def test_a_file_without_an_attribute_is_told_what_to_add(hauberk: Callable[..., Result], tmp_path: Path) -> None:
    for code, name in (
        ("raise SystemExit\ndef _help(): ...\ndef load(): ...\ndef build(): ...\n", "build"), ("class Net: ...\n", "Net"),
        ("def make_model(): ...\n", "make_model"), ("def broken(:\n", "build"),
    ):
        (tmp_path / "shop.py").write_text(code)
        run = hauberk("assess", "--model", "shop.py", "--data", "sklearn:wine")
        assert run.exit_code == 2
        assert f"Name it, such as shop.py:{name}." in run.stderr and "the model is 'shop.py'" in run.stderr


def test_classes_may_be_stated_where_some_have_no_sample(hauberk: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(2, 5)\n")
    x = np.random.default_rng(0).random((40, 2), dtype=np.float32)
    np.savez(tmp_path / "test.npz", x=x, y=np.arange(40) % 4)  # the model has a fifth class
    given = ["--model", "net.py:build", "--data", "test.npz", "--select", "robustness/clean-accuracy"]
    refused = hauberk("assess", *given)
    assert refused.exit_code == 2 and "returns 5 scores per sample and the data has 4 classes" in refused.stderr
    run = hauberk("assess", *given, "--classes", 5, "--fail-on", "never")
    assert run.exit_code == 0, run.stderr
    assert Report.load("report").plan["data"]["classes"] == 5
    assert hauberk("init", "net.py:build", "test.npz", "--classes", 5).exit_code == 0
    assert tomllib.loads(Path("plan.toml").read_text())["data"]["classes"] == 5
    attacked = hauberk("attack", "fgsm", "--model", "net.py:build", "--data", "test.npz", "--classes", 5)
    assert attacked.exit_code == 0, attacked.stderr
    few = hauberk("assess", *given, "--classes", 3)
    assert few.exit_code == 2 and "label at index 3 is 3" in few.stderr
    numbers = hauberk("assess", "--model", "net.py:build", "--data", "sklearn:diabetes", "--classes", 5)
    assert numbers.exit_code == 2 and "data.classes is 5, but the labels are numbers to predict" in numbers.stderr


def test_init_says_how_an_endpoint_is_asked(hauberk: Callable[..., Result], folder: Path, endpoint: str) -> None:
    address, template = endpoint.replace("/predict", "/open"), '{"rows": "$INPUT"}'
    unsaid = hauberk("init", address, "test.npz", "--template", template)
    assert unsaid.exit_code == 2
    for word in ("model.template", "model.response", "--template and --response"):
        assert word in unsaid.stderr
    run = hauberk("init", address, "test.npz", "--template", template, "--response", "out[*].s")
    assert run.exit_code == 0, run.stderr
    table = tomllib.loads(Path("plan.toml").read_text())["model"]
    assert table == {"url": address, "template": template, "response": "out[*].s", "access": "score"}
    target, data, _ = prepare(read_plan("plan.toml"))
    x, _ = data.test.first(8)
    assert torch.allclose(target.logits(x).float(), x @ WEIGHT.T, atol=1e-6)
    file = hauberk("init", "shopwindow.models:build", "test.npz", "--template", template, "--output", "other.toml")
    assert file.exit_code == 2 and "template, response, headers and classes with a url alone" in file.stderr


def test_a_threat_says_what_a_row_of_a_table_can_be(folder: Path) -> None:
    draw = np.random.default_rng(1)
    rows = np.stack([draw.random(8), draw.integers(0, 5, 8), draw.random(8)], 1).astype(np.float32)
    np.savez(folder / "test.npz", x=rows, y=np.arange(8) % 2)
    threat = {"norm": "linf", "eps": 1, "frozen": [0], "whole": [1], "falling": [2]}
    _, data, settings = prepare(plan_in(folder, data={"bounds": [0, 5]}, threat=[threat]))
    ball = settings.threats[0].within(data.bounds).around(torch.from_numpy(rows))
    assert torch.equal(ball.low[:, 0], ball.high[:, 0])
    assert torch.equal(ball.high[:, 1], torch.from_numpy(rows[:, 1] + 1).clamp(max=5))
    assert torch.equal(ball.high[:, 2], torch.from_numpy(rows[:, 2])) and bool((ball.low[:, 2] == 0).all())
    for wrong, word in (
        ({"whole": [3]}, "names the feature 3"), ({"rising": [1], "falling": [1]}, "rising and as falling"),
        ({"one_hot": [[1]]}, "two or more"),
    ):
        with pytest.raises(UsageError, match=word):
            prepare(plan_in(folder, data={"bounds": [0, 5]}, threat=[{"norm": "linf", "eps": 1, **wrong}]))
    with pytest.raises(UsageError, match="frozen"):
        plan_in(folder, threat=[{"norm": "linf", "eps": 1, "frozen": [-1]}])


def test_a_model_without_weights_is_told_and_is_the_same_for_the_same_plan(tmp_path: Path) -> None:
    """Its first weights are drawn under the plan's seed: the same twice, others under another seed, the global state kept."""
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Linear(4, 3)\n")
    plan = parse_plan({"model": {"path": "net.py:build"}, "data": {"test": "sklearn:iris"}}, source=tmp_path / "plan.toml")
    data = load_plan_data(plan)
    torch.manual_seed(5)
    first = load_plan_model(plan, data)
    after = torch.rand(3)
    second = load_plan_model(plan, data)
    other = load_plan_model(changed(plan, {"run": {"seed": 1}}, name="test"), data)
    assert torch.equal(first.module.weight, second.module.weight)
    assert not torch.equal(first.module.weight, other.module.weight)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), after)
    assert any("no weights named: random initialisation by net.py:build" in one for one in first.notices)
    torch.save(first.module.state_dict(), tmp_path / "w.pt")
    weighted = load_plan_model(changed(plan, {"model": {"weights": "w.pt"}}, name="test"), data)
    assert not any("no weights" in one for one in weighted.notices)


def test_what_a_check_advises_in_python_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that come first, then each action, typed in the folder of the report: no name is missing."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    x, y = load_data("sklearn:digits").test.first(60)
    np.savez(tmp_path / "test.npz", x=x.numpy(), y=y.numpy())
    (tmp_path / "plan.lock.toml").write_text(
        '[model]\npath = "net.py:build"\n[data]\ntest = "test.npz"\ntrain = "test.npz"\nbounds = [0, 1]\n'
    )
    monkeypatch.chdir(tmp_path)
    report = Report([], {}, tomllib.loads(Path("plan.lock.toml").read_text()))
    advised = {one.command for card in load_methods().cards("check") for one in card.facts["advice"] if one.command}
    typed = [one for one in sorted(advised) if steps(one, report)[0][0] == ">>>"]
    assert len(typed) >= 10
    for command in typed:
        lines = [step for _, step in (*preamble([command], report), *steps(command, report))]
        if "train.groups" in command:
            continue  # digits have none
        if "groups" in command:
            assert "groups = next(iter(data.test.groups.values()))" in lines
            continue  # digits have none
        scope: dict[str, Any] = {}
        with rng.isolated(0):
            for line in lines:
                exec(line, scope)  # a command of ours
    torch.use_deterministic_algorithms(False)


def test_advice_for_the_shell_names_the_plan() -> None:
    """A command that takes a plan is given the locked one, quoted; where model and data are objects, PLAN stands for it."""
    known, own = Report([], {}, {"model": {"path": "a.py:b"}, "data": {"test": "c.npz"}}), Report([], {}, {})
    place = "my report/plan.lock.toml"
    assert steps("hauberk invert --defence private=0.1", known, place) == [
        ("$", f"hauberk invert '{place}' --defence private=0.1")
    ]
    assert steps("hauberk fuzz", known) == [("$", "hauberk fuzz plan.lock.toml")]
    assert steps("hauberk membership PLAN --references 4", known, place)[0][1] == f"hauberk membership '{place}' --references 4"
    assert steps("hauberk invert --defence private=0.1", own) == [("$", "hauberk invert PLAN --defence private=0.1")]
    assert steps("hauberk assess --preset thorough", known) == [
        ("$", "hauberk assess plan.lock.toml --preset thorough --output ../again")
    ]
    for command in ("hauberk calibrate --epsilon 3", "hauberk scan FILE", "hauberk assess a.toml --seed 1", "pip install x"):
        assert steps(command, known) == [("$", command)]
    advised = {one.command for card in load_methods().cards("check") for one in card.facts["advice"] if one.command}
    assert not [said for one in advised for _, said in steps(one, known) if "PLAN" in said.split()]


def test_a_plan_is_loaded_for_python(folder: Path) -> None:
    """`load_plan` gives target, module, data and the threat, with the bounds of the data; what is no module is told."""
    (folder / "plan.toml").write_text(
        '[model]\npath = "shopwindow.models:build"\naccess = "label"\n'
        '[data]\ntest = "test.npz"\nbounds = [0, 1]\n[threat]\neps = 0.2\n'
    )
    plan = hauberk_package.load_plan(folder)
    assert plan.target.access is Access.LABEL and torch.equal(plan.model.weight, WEIGHT)
    assert plan.threat.eps == 0.2 and plan.threat.bounds == (0.0, 1.0) and len(plan.data.test) == 8
    with pytest.raises(ModelError, match="no torch module"):
        _ = Planned(Target(lambda x: x), plan.data, plan.threats).model


def test_encrypted_weights_and_models_are_opened_with_the_key_that_the_plan_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hauberk.assets.encryption import encrypt_file, save_encrypted

    key, weight = bytes(range(32)), torch.tensor([[3.0, 1.0, -1.0], [0.0, 2.0, 5.0]])
    save_encrypted({"weight": weight}, folder / "w.hbke", key)
    (folder / "key").write_text(key.hex())
    monkeypatch.setenv("SHOP_KEY", key.hex())
    for name in ("file:key", "env:SHOP_KEY"):
        model = {"path": "shopwindow.models:build", "weights": "w.hbke", "key": name}
        target, data, _ = prepare(plan_in(folder, model=model))
        x, _ = data.test.first(8)
        assert torch.equal(target.logits(x), x @ weight.T)
        assert [path.name for path in target.files] == ["models.py", "w.hbke"]
    for model, words in (
        ({"path": "shopwindow.models:build", "weights": "w.hbke"}, r'w\.hbke is encrypted.*\[model\] key = "env:NAME"'),
        ({"path": "shopwindow.models:build", "key": "file:key"}, "neither model nor weights are encrypted"),
        ({"path": "shopwindow.models:build", "weights": "w.hbke", "key": "env:NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
    ):
        with pytest.raises(UsageError, match=words):
            prepare(plan_in(folder, model=model))
    onnx = pytest.importorskip("onnx")
    make, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [make.make_node("MatMul", ["x", "w"], ["y"])], "net", [make.make_tensor_value_info("x", kind, [None, 3])],
        [make.make_tensor_value_info("y", kind, [None, 2])], [onnx.numpy_helper.from_array(weight.T.numpy(), "w")],
    )
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=9), folder / "net.onnx")
    encrypt_file(folder / "net.onnx", folder / "net.hbke", key)
    target, data, _ = prepare(plan_in(folder, model={"path": "net.hbke", "key": "file:key", "outputs": "logits"}))
    assert torch.allclose(target.logits(x), x @ weight.T)
    assert [path.name for path in target.files] == ["net.hbke"]
    assert torch.equal(pickle.loads(pickle.dumps(target)).logits(x), target.logits(x))
    onnx.save(onnx.load(folder / "net.onnx"), folder / "out.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    encrypt_file(folder / "out.onnx", folder / "out.hbke", key)
    with pytest.raises(UnsafeFile, match="wants to read weights from other files"):
        prepare(plan_in(folder, model={"path": "out.hbke", "key": "file:key"}))
