"""Plans: what is read, what is refused and in which words, and that a plan written down is the plan that was read."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli_w

from hauberk.core.errors import UsageError
from hauberk.core.threat import NORMS
from hauberk.io import plan as plans
from hauberk.io.plan import Plan, changed, parse_plan, parse_threat, plan_schema, plan_table, read_plan, resolved
from hauberk.io.plan_schema import ThreatTable

LEAST: dict[str, Any] = {"model": {"path": "net.py:build"}, "data": {"test": "test.npz"}}
FULL = """
model.path = "shop.models:build"
model.weights = "w.safetensors"
model.access = "gradient"
model.normalize = { mean = [0.5, "1/2"], std = 0.25 }
data   = { test = "test.npz", train = "train.npz", bounds = [0, 1], groups = ["sex"] }
threat = { norm = "linf", eps = [0.01, "8/255", 0.1], queries = 5000 }
run    = { preset = "standard", seed = 3, minutes = 10, select = ["robustness", "privacy/membership-loss"], workers = 2 }
[gate]
"robustness/worst-case" = { min = 0.4 }
"privacy/membership-loss" = { max = 0.01, run = true }
"""


def with_table(**tables: Any) -> Plan:
    return parse_plan({**LEAST, **tables})


def test_a_plan_is_read(tmp_path: Path) -> None:
    place = tmp_path / "plan.toml"
    place.write_text(FULL)
    plan = read_plan(place)
    assert (plan.model.path, plan.model.weights, plan.model.access) == ("shop.models:build", "w.safetensors", "gradient")
    assert plan.model.normalize is not None
    assert (plan.model.normalize.mean, plan.model.normalize.std) == ([0.5, 0.5], [0.25])
    assert (plan.data.bounds, plan.data.groups, plan.data.trusted) == ([0.0, 1.0], ["sex"], "")
    assert [(one.norm, one.eps, one.queries) for one in plan.threat] == [("linf", [0.01, 8 / 255, 0.1], 5000)]
    assert (plan.run.preset, plan.run.seed, plan.run.minutes, plan.run.workers) == ("standard", 3, 10.0, 2)
    assert plan.gate["privacy/membership-loss"].model_dump() == {"min": None, "max": 0.01, "run": True}
    assert (plan.source, plan.base) == (place, tmp_path)
    assert read_plan(tmp_path) == plan


def test_the_same_table_in_pyproject(tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    project.write_text(tomli_w.dumps({"project": {"name": "shop"}, "tool": {"hauberk": LEAST}}))
    assert plan_table(read_plan(tmp_path)) == LEAST == plan_table(read_plan(project))
    project.write_text('[tool.hauberk.model]\npth = "x"\n')
    with pytest.raises(UsageError, match=r"^pyproject\.toml: model\.pth is unknown\. Did you mean 'path'\?"):
        read_plan(tmp_path)
    project.write_text("[tool.other]\n")
    with pytest.raises(UsageError, match=r"pyproject\.toml has no table \[tool\.hauberk\]"):
        read_plan(project)
    with pytest.raises(UsageError, match=r"holds no plan.*hauberk init"):
        read_plan(tmp_path)


def test_a_plan_comes_before_pyproject(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(tomli_w.dumps({"tool": {"hauberk": {**LEAST, "run": {"seed": 1}}}}))
    (tmp_path / "plan.toml").write_text(tomli_w.dumps({**LEAST, "run": {"seed": 2}}))
    assert read_plan(tmp_path).run.seed == 2


@pytest.mark.parametrize(("eps", "radii"), [
    (0.1, [0.1]), (1, [1.0]), ("8/255", [8 / 255]), ("0.5", [0.5]), ("inf", [math.inf]), ([0, 0.1, "1/2"], [0.0, 0.1, 0.5]),
])
def test_a_radius_is_a_number_a_fraction_or_a_list(eps: object, radii: list[float]) -> None:
    assert with_table(threat={"norm": "l2", "eps": eps}).threat == [ThreatTable(norm="l2", eps=radii)]


def test_several_threats_are_a_list() -> None:
    plan = with_table(threat=[{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": [1, 2]}])
    assert [(one.norm, one.eps) for one in plan.threat] == [("linf", [0.1]), ("l2", [1.0, 2.0])]
    assert with_table().threat == []


@pytest.mark.parametrize(("tables", "words"), [
    ({"model": {"pth": "x"}}, "model.pth is unknown. Did you mean 'path'?"),
    ({"modle": {}}, "modle is unknown. Did you mean 'model'?"),
    ({"run": {"presets": "quick"}}, "run.presets is unknown. Did you mean 'preset'?"),
    ({"threat": {"nrm": "linf", "eps": 1}}, "threat.nrm is unknown. Did you mean 'norm'?"),
    ({"threat": [{"eps": 1}, {"esp": 1}]}, "threat[1].esp is unknown. Did you mean 'eps'?"),
    ({"gate": {"a/b": {"mim": 1}}}, 'gate."a/b".mim is unknown. Did you mean \'min\'?'),
    ({"model": {"path": "x", "normalize": {"maen": 1, "std": 1}}}, "model.normalize.maen is unknown. Did you mean 'mean'?"),
    ({"data": {"train": "x.npz"}}, "data.test is missing. hauberk init MODEL DATA writes a plan that works."),
    ({"data": "x.npz"}, "data is 'x.npz'. Expected a table."),
    ({"data": {"test": 3}}, "data.test is 3. Expected text in quotes."),
    ({"data": {"test": "x", "groups": "sex"}}, "data.groups is 'sex'. Expected a list in [ ]."),
    ({"data": {"test": "x", "bounds": [1, 0]}}, "data.bounds is [1, 0]. Expected [lowest, highest], the lowest first."),
    ({"data": {"test": "x", "bounds": [0]}},
     "data.bounds is [0]. Expected [lowest, highest], each a number or one number per feature."),
    ({"data": {"test": "x", "bounds": [[0, 2], 1]}},
     "data.bounds is [[0, 2], 1]. Expected [lowest, highest], the lowest first."),
    ({"run": {"preset": "fats"}}, "run.preset is 'fats'. Expected quick | standard | thorough."),
    ({"run": {"preset": "quik"}}, "run.preset is 'quik'. Expected quick | standard | thorough. Did you mean 'quick'?"),
    ({"run": {"seed": "3"}}, "run.seed is '3'. Expected a whole number."),
    ({"run": {"seed": True}}, "run.seed is true. Expected a whole number."),
    ({"run": {"workers": 0}}, "run.workers is 0. Expected greater than or equal to 1."),
    ({"run": {"device": "gpu"}}, "run.device is 'gpu'. Expected cpu, cuda, cuda:1, mps or xpu."),
    ({"threat": {"eps": -1}}, "threat.eps is -1. Expected a radius of 0 or more, or a rising list of them."),
    ({"threat": {"eps": [0.2, 0.1]}}, "threat.eps is [0.2, 0.1]. Expected a radius of 0 or more, or a rising list of them."),
    ({"threat": {"eps": "1/0"}}, "threat.eps is '1/0'. Expected a number, or a fraction such as '8/255'."),
    ({"threat": {"eps": float("nan")}}, "threat.eps is nan. Expected a number, or a fraction such as '8/255'."),
    ({"model": {"path": "x", "url": "http://x"}}, "model is a table with path, url. Expected either path or url."),
    ({"model": {"access": "score"}}, "model is a table with access. Expected either path or url."),
    ({"model": {"url": "ftp://x"}}, "model.url is 'ftp://x'. Expected an address that begins with http:// or https://."),
    ({"gate": {"a/b": {}}}, 'gate."a/b" is a table with nothing in it. Expected at least one of min, max and run.'),
    ({"run": {"seed": "3", "preset": 1}}, "run.preset is 1. Expected quick | standard | thorough. Also wrong: run.seed."),
])
def test_what_is_wrong_is_said_in_plain_words(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        with_table(**tables)
    assert str(refusal.value) == f"plan.toml: {words}"


def test_files_that_are_no_plan(tmp_path: Path) -> None:
    place = tmp_path / "plan.toml"
    with pytest.raises(UsageError, match=r"does not exist.*hauberk init MODEL DATA"):
        read_plan(place)
    place.write_text("[model\n")
    with pytest.raises(UsageError, match=r"is not TOML .*line 1"):
        read_plan(place)
    place.write_bytes(b"\xff\xfe[model]")
    with pytest.raises(UsageError, match="is not TOML"):
        read_plan(place)
    place.write_text("a = " + "[" * 200_000)
    with pytest.raises(UsageError, match="is not TOML"):
        read_plan(place)
    place.write_text("#" * (plans.LARGEST + 1))
    with pytest.raises(UsageError, match=f"has {plans.LARGEST + 1} bytes. Expected a plan of at most {plans.LARGEST} bytes"):
        read_plan(place)


def test_a_plan_that_is_written_down_is_the_plan_that_was_read(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    place = tmp_path / "work" / "plan.toml"
    place.write_text(FULL)
    plan = read_plan(place)
    table = resolved(plan, output=tmp_path / "out" / "report")
    assert table["folder"] == "../../work"
    assert table["run"] == {
        "preset": "standard", "seed": 3, "minutes": 10.0, "select": ["robustness", "privacy/membership-loss"], "ignore": [],
        "workers": 2, "device": "cpu",
    }
    assert table["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.match(r"\d+\.\d+", table["versions"]["torch"])
    assert str(tmp_path) not in json.dumps(table)
    lock = tmp_path / "out" / "report" / "plan.lock.toml"
    lock.parent.mkdir(parents=True)
    lock.write_text(tomli_w.dumps({"hauberk": "0.1.0", **table}))
    again = read_plan(lock)
    assert again.base.resolve() == plan.base.resolve()
    for key in ("model", "data", "threat", "run", "gate"):
        assert getattr(again, key) == getattr(plan, key)


def test_a_plan_travels_to_another_process(tmp_path: Path) -> None:
    plan = parse_plan(LEAST, source=tmp_path / "deep" / "plan.toml")
    again = pickle.loads(pickle.dumps(plan))
    assert again == plan
    assert again.source == tmp_path / "deep" / "plan.toml"


def test_changes_are_merged_key_by_key() -> None:
    plan = with_table(run={"seed": 1, "preset": "standard"}, threat={"eps": 0.1})
    other = changed(plan, {"run": {"seed": 2, "device": None}, "threat": None, "gate": {"a/b": {"min": 0.5}}}, name="options")
    assert (other.run.seed, other.run.preset, other.run.device) == (2, "standard", "cpu")
    assert other.threat == plan.threat
    assert other.gate["a/b"].min == 0.5
    with pytest.raises(UsageError, match=r"^options: run\.seed is -1"):
        changed(plan, {"run": {"seed": -1}}, name="options")


@pytest.mark.parametrize(("text", "table"), [
    ("linf:8/255", {"norm": "linf", "eps": [8 / 255]}), ("L2:0.5,1, 2", {"norm": "l2", "eps": [0.5, 1.0, 2.0]}),
    ("l0:inf", {"norm": "l0", "eps": [math.inf]}),
])
def test_threats_as_written_on_the_command_line(text: str, table: dict[str, Any]) -> None:
    assert parse_threat(text) == table


@pytest.mark.parametrize("text", ["linf", "linf:", "linf:x", "0.1", "linf:1/0"])
def test_threats_that_cannot_be_read(text: str) -> None:
    with pytest.raises(UsageError, match=f"the threat is '{text}'. Expected norm:eps"):
        parse_threat(text)


def test_sources_are_found_from_the_folder_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("work")
    assert plans.located("test.npz", folder) == "work/test.npz"
    assert plans.located("../test.npz", folder) == "test.npz"
    assert plans.located("net.py:build", folder) == "work/net.py:build"
    for unmoved in ("shop.models:build", "sklearn:digits", "https://host/predict", "/data/test.npz", "/data/net.py:build", ""):
        assert plans.located(unmoved, folder) == unmoved
    monkeypatch.chdir(tmp_path)
    assert plans.rebased("net.py:build", tmp_path / "work") == "../net.py:build"
    assert plans.rebased("work/test.npz", tmp_path / "work") == "test.npz"
    for unmoved in ("shop.models:build", "sklearn:digits", "https://host/predict", "/data/test.npz"):
        assert plans.rebased(unmoved, tmp_path / "work") == unmoved


def test_the_schema_accepts_what_the_reader_accepts() -> None:
    schema = plan_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    good = [
        LEAST, {**LEAST, "threat": {"eps": "8/255"}}, {**LEAST, "threat": [{"norm": "l2", "eps": [1, "3/2"]}]},
        {**LEAST, "data": {"test": "x", "bounds": [[0, 1], [2, 3]]}},
    ]
    bad = [
        {**LEAST, "model": {"pth": "x"}}, {"model": {"path": "x"}}, {**LEAST, "threat": {"norm": "l3", "eps": 1}},
        {**LEAST, "threat": {"eps": "much"}}, {**LEAST, "run": {"seed": -1}}, {**LEAST, "data": {"test": "x", "bounds": [0]}},
    ]
    for table in good:
        assert [error.message for error in check.iter_errors(table)] == []
        parse_plan(table)
    for table in bad:
        assert not check.is_valid(table)
        with pytest.raises(UsageError):
            parse_plan(table)


def test_the_norms_are_those_of_the_core() -> None:
    assert tuple(ThreatTable.model_json_schema()["properties"]["norm"]["enum"]) == NORMS


def test_reading_a_plan_does_not_load_torch() -> None:
    code = "import sys, hauberk.io.plan as p; p.parse_threat('linf:1'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("changes", "words"), [
    ({"data": {"test": ""}}, "data.test is ''. Expected text that is not empty."),
    ({"data": {"test": "x", "classes": 1}}, "data.classes is 1. Expected greater than or equal to 2."),
    ({"data": {"test": "x", "bounds": [1]}}, "data.bounds is [1]. Expected [lowest, highest], each a number"),
    ({"model": {"path": "a", "url": "http://x"}}, "model is a table with path, url. Expected either path or url."),
    ({"model": {"path": "a", "normalize": {"mean": "q", "std": 1}}}, "model.normalize.mean is 'q'. Expected a number, or"),
    ({"threat": {"eps": "x"}}, "threat.eps is 'x'. Expected a number, or a fraction"),
    ({"gate": {"a": {}}}, "gate.a is a table with nothing in it. Expected at least one of min, max and run."),
])
def test_refusals_speak_in_our_words_alone(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_plan({"model": {"path": "a"}, "data": {"test": "x"}, **changes})
    assert words in str(caught.value)
    assert not re.search("Value error|Input should|String should", str(caught.value))
