"""The scanner on its corpus, beside picklescan, fickling and modelscan: what is blocked, what is blocked for nothing, and time.

The corpus is built by `tests/assets/corpus`; its payloads are harmless, and no file is loaded. A peer blocks a file when its
command line would end with another code than 0 for it: that is what a pipeline sees.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import io
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from harness import HERE, save

sys.path.insert(0, str(HERE.parent / "tests" / "assets"))
import corpus

from hauberk.assets.scan import scan_file

ROUNDS = 3


def ours(path: Path) -> str:
    """`hauberk scan FILE`."""
    return "passed" if scan_file(path).safe else "blocked"


def picklescan(path: Path) -> str:
    """`picklescan --path FILE`."""
    from picklescan.scanner import scan_file_path

    found = scan_file_path(str(path))
    return "error" if found.scan_err else "blocked" if found.infected_files else "passed"


def fickling(path: Path) -> str:
    """`fickling.scan_file`; what it cannot read raises, and counts as an error."""
    import fickling as peer
    from fickling.analysis import Severity

    return "passed" if peer.scan_file(str(path)).severity == Severity.LIKELY_SAFE else "blocked"


def modelscan(path: Path) -> str:
    """`modelscan --path FILE`; a file it does not know is its code 3."""
    from modelscan.modelscan import ModelScan

    scanner = ModelScan()
    scanner.scan(str(path))
    if scanner.issues.all_issues:
        return "blocked"
    return "error" if scanner.errors or not scanner.scanned else "passed"


SCANNERS: dict[str, Callable[[Path], str]] = {
    "hauberk": ours, "picklescan": picklescan, "fickling": fickling, "modelscan": modelscan}


def judge(scanner: Callable[[Path], str], paths: list[Path]) -> tuple[dict[str, str], float]:
    """Return what a scanner says of each file, and its CPU seconds; an exception is an error."""
    told = {}
    began = time.process_time()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for path in paths:
            try:
                told[path.name] = scanner(path)
            except Exception:
                if scanner is ours:
                    raise
                told[path.name] = "error"
    return told, time.process_time() - began


def here(name: str) -> bool:
    """Whether a scanner can be imported."""
    try:
        importlib.import_module({"hauberk": "hauberk", "modelscan": "modelscan.modelscan"}.get(name, name))
    except ImportError:
        return False
    return True


def main() -> None:
    """Scan both halves of the corpus in turn and write the table."""
    logging.disable(logging.CRITICAL)
    content: dict[str, object] = {}
    rows, passed = [], {}
    with tempfile.TemporaryDirectory() as folder:
        bad = corpus.write(corpus.malicious(), Path(folder, "malicious"))
        good = corpus.write(corpus.benign(), Path(folder, "benign"))
        seconds: dict[str, list[float]] = collections.defaultdict(list)
        names = [name for name in SCANNERS if here(name)]
        for turn in range(ROUNDS):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                found, one = judge(SCANNERS[name], bad)
                clean, two = judge(SCANNERS[name], good)
                seconds[name].append(one + two)
                content[name] = {"malicious": collections.Counter(found.values()), "benign": collections.Counter(clean.values())}
                passed[name] = {"missed": [key for key, value in found.items() if value == "passed"],
                                "blocked for nothing": [key for key, value in clean.items() if value != "passed"]}
        for name in names:
            table = content[name]
            spent = sorted(seconds[name])[ROUNDS // 2]
            assert isinstance(table, dict)
            first, second = table["malicious"], table["benign"]
            calls = [key for key in passed[name]["missed"] if key.startswith(("gadget", "encoding"))]
            rows.append([
                name, f"{first['blocked']} of {len(bad)}", str(first["error"]), str(first["passed"]), str(len(calls)),
                f"{second['blocked']} of {len(good)}", str(second["error"]), f"{spent:.2f}",
            ])
            table["seconds"] = seconds[name]
            table |= {key: values[:40] for key, values in passed[name].items()}
    pickles = sum(path.name.startswith(("gadget", "encoding")) for path in bad)
    columns = ["scanner", "malicious: blocked", "error (not 0)", "exits 0", f"exits 0, of {pickles} pickles", "benign: blocked",
               "error (not 0)", "CPU s"]
    save("scan", "Scanning model files", content, columns, rows, [
        f"Median of {ROUNDS} rounds, all files one after the other in one process, imports not counted. The malicious half is",
        "of our own making, beside published bypasses, and the scanner was finished against it: for us it is a test of",
        "regression, for the peers one of reach. It holds formats that a peer does not read; the column of plain pickles is what",
        "all of them read. Errors are files on which a scanner gives up: a pipeline stops there too, for good files as for bad",
        "ones. The benign half is default saves of torch, scikit-learn, joblib, NumPy, ONNX, skops and safetensors as installed;",
        "those of pandas, Keras and GGUF are built by hand as these libraries write them.",
    ])


if __name__ == "__main__":
    main()
