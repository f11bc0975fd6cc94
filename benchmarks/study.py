"""The study of robustness and leakage on real images: its two tables, its words, its price.

    python study.py [SCALE] [mnist | cifar10] [NETWORK] [FOLDER]

Needs mnist.npz, or cifar10-train.parquet and cifar10-test.parquet, in the folder named by HAUBERK_DATA (else `../shared/data`
beside the checkout). What is finished is kept in FOLDER, left out build/study-SCALE for MNIST; a run that was broken off goes on,
and one that is whole is written out again. CPU seconds are added up over all parts of a run. With FINISHED=1 in the environment
a run that was broken off is written out as far as it went.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from harness import data_folder, save
from hauberk.core.finding import Table
from hauberk.study import run_study

FILES = {"mnist": "mnist.npz", "cifar10": "cifar10-train.parquet"}
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10"}


def main() -> None:
    """Run the study and write its tables."""
    scale, data, network, folder = [*sys.argv[1:5], *("smoke", "mnist", "", "")[len(sys.argv) - 1 :]]
    name = "_".join(["study", scale, *(["cifar"] if data == "cifar10" else []), *([network] if network else [])])
    kept = Path(folder) if folder else Path(__file__).parent.parent / "build" / name.replace("_", "-")
    source = data_folder(FILES[data]) / (FILES[data] if data == "mnist" else "")
    began = time.process_time()
    try:
        report = run_study(str(source), kept, scale=scale, network=network, only_finished=bool(os.environ.get("FINISHED")))
    finally:
        seconds = _spent(kept, time.process_time() - began)
    told = [finding for finding in report.findings if finding.id != "privacy/side-effects"]
    tables = [one for finding in report.findings for one in finding.evidence if isinstance(one, Table)]
    radii = next(one for one in tables if one.title == "By radius of training")
    rest = [one for one in tables if one is not radii]
    notes = [f"{report.scope['study']['network']}; {seconds:.0f} CPU-s from the images to the report.", ""]
    notes += [f"* {finding.summary}." for finding in told]
    notes += ["", *(f"* {note}" for note in dict.fromkeys(note for finding in reversed(told) for note in finding.notes))]
    for table in rest:
        notes += ["", f"{table.title}:", "", "| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * len(table.columns)]
        notes += ["| " + " | ".join(map(str, row)) + " |" for row in table.rows]
    content = {"seconds": seconds, "findings": [one.to_dict() | {"evidence": []} for one in report.findings]}
    save(
        name, f"Robustness and leakage on {NAMES[data]}, scale {scale}", content, [str(one) for one in radii.columns],
        [[str(cell) for cell in row] for row in radii.rows], notes,
    )


def _spent(kept: Path, now: float) -> float:
    """Return the CPU seconds of all parts of a run, kept beside it."""
    place = kept / "seconds.txt"
    spent = now + (float(place.read_text(encoding="utf-8")) if place.exists() else 0.0)
    if kept.exists():
        place.write_text(f"{spent}\n", encoding="utf-8")
    return spent


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
