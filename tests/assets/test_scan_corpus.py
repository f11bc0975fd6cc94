"""The whole corpus: nothing malicious is ever safe, and nothing that a library saves by default is blocked."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path

import corpus
import pytest
from corpus.asm import EVIL, OLD, call, four, name, short
from corpus.benign import _net

from hauberk.assets.scan import Level, scan_bytes, scan_file

MALICIOUS = corpus.malicious()


def test_nothing_malicious_is_safe() -> None:
    found = {name: scan_bytes(content, name=name) for name, content in MALICIOUS.items()}
    assert len(found) >= 250 and [name for name, one in found.items() if one.safe] == []
    kinds = collections.Counter(name.partition("-")[0] for name in found)
    assert min(kinds.values()) >= 50, kinds
    # What names a runner of commands is dangerous, and not merely unknown.
    assert {found[f"gadget-{one}.pkl"].level for one in ("os.system", "subprocess.Popen", "builtins.eval", "posix.fork")} == {
        Level.DANGEROUS}
    assert all(one.issues[0].what and one.level is one.issues[0].level for one in found.values())


def test_no_default_save_is_blocked() -> None:
    found = {name: scan_bytes(content, name=name) for name, content in corpus.benign().items()}
    blocked = {name: [(issue.where, issue.what) for issue in one.issues] for name, one in found.items() if not one.safe}
    assert len(found) >= 60 and blocked == {}
    assert found["torch-torch-state.pt"].level is Level.SAFE and found["torch-torch-lora.pt"].level is Level.SAFE
    assert found["torch-torch-module.pt"].level is Level.FRAMEWORK and found["pandas-pandas-frame.pkl"].level is Level.FRAMEWORK
    assert "sklearn.svm._classes.SVC" in found["sklearn-5-SVC.pkl"].objects


# Ways past other scanners that were published: the file each is shown by, and the level it must reach.
BYPASSES = {
    "modelscan 338, collect_env.run": ("gadget-torch.utils.collect_env.run.pkl", Level.DANGEROUS),
    "modelscan 338, spawnv_passfds": ("gadget-multiprocessing.util.spawnv_passfds.pkl", Level.DANGEROUS),
    "modelscan 338, _run_entry_point": ("gadget-mlflow.projects.backend.local._run_entry_point.pkl", Level.DANGEROUS),
    "modelscan 338, read_csv": ("gadget-pandas.read_csv.pkl", Level.UNKNOWN),
    "modelscan 330, numpy.__builtins__": ("encoding-numpy-builtins.pkl", Level.DANGEROUS),
    "modelscan 331, import_module, getattr, str.join": ("encoding-joined.pkl", Level.DANGEROUS),
    "modelscan 354, iterator that fails open, sum": ("archive-bad-sum.pt", Level.UNVERIFIABLE),
    "modelscan 354, iterator that fails open, method": ("archive-unknown-method.pt", Level.UNVERIFIABLE),
    "modelscan 263, ending": ("archive-hidden.pt", Level.DANGEROUS),
    "GHSA-w8jq-xcqf-f792, encryption flag": ("archive-encrypted.pt", Level.UNVERIFIABLE),
    "GHSA-w8jq-xcqf-f792, inside": ("archive-encrypted-inside.pt", Level.UNVERIFIABLE),
    "GHSA-7q5r-7gvp-wc82, other name inside": ("archive-other-name.pt", Level.UNVERIFIABLE),
    "GHSA-769v-p64c-89pr, hidden pickle": ("archive-no-ending.pt", Level.DANGEROUS),
    "GHSA-655q-fx9r-782v, pip.main": ("gadget-pip.main.pkl", Level.DANGEROUS),
    "Keras, CVE-2025-1550": ("container-function.keras", Level.DANGEROUS),
    "Keras, get_file": ("container-utils.keras", Level.DANGEROUS),
}


@pytest.mark.parametrize(("file", "level"), BYPASSES.values(), ids=BYPASSES)
def test_published_bypasses_are_blocked(file: str, level: Level) -> None:
    assert scan_bytes(MALICIOUS[file], name=file).level >= level


def test_every_reader_of_a_crafted_file_is_spoken_for(tmp_path: Path) -> None:
    """The same bytes under every ending, also without one: an ending decides what a loader tries."""
    for content in (EVIL, OLD, MALICIOUS["archive-plain.pt"], MALICIOUS["stream-tar-on-top.pkl"]):
        for ending in (".pt", ".pkl", ".safetensors", ".json", ".md", ".txt", ".h5", ".gguf", ".onnx", ".png", ".bin", ""):
            (tmp_path / f"a{ending}").write_bytes(content)
            assert not scan_file(tmp_path / f"a{ending}").safe, ending


def test_a_module_keeps_its_level_whatever_it_holds() -> None:
    """A callable in a hook of a module would be called with data: only plain framework objects pass."""
    net = _net()
    assert scan_bytes(pickle.dumps(net)).level is Level.FRAMEWORK
    net[0]._forward_hooks[1] = print
    assert not scan_bytes(pickle.dumps(net)).safe


def test_places_lead_to_the_opcode() -> None:
    body = four(b"N0" * 7 + name("os", "system") + short("true") + b"\x85R")
    (issue,) = scan_bytes(body).issues
    offset = int(issue.where.removeprefix("@"))
    assert body[offset : offset + 1] == b"\x93" and issue.what == "imports os.system"
    inside = scan_bytes(MALICIOUS["archive-nested.zip"]).issues[0]
    assert inside.where.startswith("a.zip:m.pt:archive/data.pkl@")
    assert scan_bytes(call("os", "system")).issues[0].what == "imports os.system"
