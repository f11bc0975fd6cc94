"""hauberk scan and hauberk convert: exit codes that mean something, and one screen that says what to do."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from torch import nn

OLD = b"cos\nsystem\n(S'true'\ntR."


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, str(folder / "a.safetensors"))
    torch.save(nn.Linear(2, 2), folder / "b.pt")
    (folder / "c.pkl").write_bytes(b"cmypackage\nNet\n.")
    (folder / "d.pkl").write_bytes(OLD)
    (folder / "e.pkl").write_bytes(b"\x80\x04N")
    return folder


def test_exit_codes(hauberk: Callable[..., Result], models: Path) -> None:
    cases = [
        (("a.safetensors",), (), 0), (("a.safetensors", "b.pt"), (), 0), (("b.pt",), ("--fail-on", "framework"), 1),
        (("c.pkl",), (), 1), (("d.pkl",), (), 1), (("e.pkl",), (), 1), (("c.pkl",), ("--fail-on", "unverifiable"), 0),
        (("c.pkl",), ("--allow", "mypackage:Net"), 0), (("d.pkl",), ("--fail-on", "never"), 0), (("missing",), (), 2),
        (("d.pkl",), ("--allow", "os:system"), 2), (("a.safetensors",), ("--max-seconds", "0"), 1), ((".",), (), 1),
    ]
    for files, options, code in cases:
        found = hauberk("scan", *(models / one for one in files), *options)
        assert found.exit_code == code, (files, options, found.output)
    (models / "allow.txt").write_text("# looked at in May\nmypackage:Net  # a net\n")
    assert hauberk("scan", models / "c.pkl", "--allow", models / "allow.txt").exit_code == 0


def test_one_screen_says_what_where_and_what_next(hauberk: Callable[..., Result], models: Path) -> None:
    shown = hauberk("scan", models).output
    rows = shown.splitlines()
    assert rows[0].startswith("dangerous") and "d.pkl" in rows[0] and "imports os.system at @0" in rows[1]
    assert "hauberk convert d.pkl --safe" in rows[2] and "torch.nn.modules.linear.Linear" in shown
    assert rows[-1] == "5 files: 1 dangerous, 1 cannot be verified, 1 unknown code, 1 safe framework objects, 1 safe data"
    for index in range(60):
        (models / f"x{index}.pkl").write_bytes(OLD)
    assert len(hauberk("scan", models).output.splitlines()) <= 70


def test_formats(hauberk: Callable[..., Result], models: Path, tmp_path: Path) -> None:
    made = json.loads(hauberk("scan", models, "--format", "json").output)
    assert made["safe"] is False and made["level"] == "dangerous" and len(made["files"]) == 5
    worst = next(one for one in made["files"] if one["path"].endswith("d.pkl"))
    assert worst["issues"] == [{"level": "dangerous", "where": "@0", "what": "imports os.system"}]
    log = json.loads(hauberk("scan", models, "--format", "sarif").output)["runs"][0]
    assert [(one["ruleId"], one["level"]) for one in log["results"]] == [
        ("scan/unknown-code", "warning"), ("scan/dangerous", "error"), ("scan/cannot-be-verified", "warning")]
    assert all(log["tool"]["driver"]["rules"][one["ruleIndex"]]["id"] == one["ruleId"] for one in log["results"])
    assert log["results"][1]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"].endswith("/d.pkl")
    suite = ET.fromstring(hauberk("scan", models, "--format", "junit").output.encode())
    assert suite.attrib["tests"] == "5" and suite.attrib["failures"] == "3" and len(suite.findall(".//failure")) == 3
    output = tmp_path / "o" / "scan.json"
    output.parent.mkdir()
    assert hauberk("scan", models, "--format", "json", "--output", output).exit_code == 1
    assert json.loads(output.read_text())["level"] == "dangerous"
    assert hauberk("scan", models, "--output", output).exit_code == 2
    assert hauberk("scan", models, "--output", output, "--force").exit_code == 1


def test_hostile_names_do_not_reach_the_terminal(hauberk: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x8c\x05os\x1b[2\x8c\x08sys\x1b[31m\x93.")
    for form in ("text", "json", "sarif", "junit"):
        shown = hauberk("scan", tmp_path / "a.pkl", "--format", form).output
        assert "\x1b" not in shown


def test_convert_keeps_the_numbers(hauberk: Callable[..., Result], tmp_path: Path) -> None:
    torch.save({"w": torch.arange(3.0), "epoch": 3, "object": nn.ReLU()}, tmp_path / "a.pt")
    found = hauberk("convert", tmp_path / "a.pt", "--safe")
    assert found.exit_code == 0 and "1 tensors" in found.output and "left out: object" in found.output
    assert load_file(tmp_path / "a.safetensors")["w"].tolist() == [0, 1, 2]
    assert json.loads((tmp_path / "a.safetensors.json").read_text())["values"]["epoch"] == 3
    assert hauberk("scan", tmp_path / "a.safetensors", tmp_path / "a.safetensors.json").exit_code == 0
    assert hauberk("convert", tmp_path / "a.pt", "--safe").exit_code == 2
    assert hauberk("convert", tmp_path / "a.pt", "--safe", "--force").exit_code == 0
    assert hauberk("convert", tmp_path / "a.pt").exit_code == 2
    assert hauberk("convert", tmp_path / "missing.pt", "--safe").exit_code == 2
    (tmp_path / "evil.pkl").write_bytes(OLD)
    found = hauberk("convert", tmp_path / "evil.pkl", "--safe")
    assert found.exit_code == 2 and "os.system" in found.output
    np.save(tmp_path / "o.npy", np.array([{"w": np.ones(2)}], dtype=object), allow_pickle=True)
    assert hauberk("convert", tmp_path / "o.npy", "--safe", "--output", tmp_path / "out.safetensors").exit_code == 0
    assert load_file(tmp_path / "out.safetensors")["0.w"].tolist() == [1, 1]
