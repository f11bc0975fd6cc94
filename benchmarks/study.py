"""The study of robustness and leakage on MNIST at the scale named (smoke where none is): its two tables, its words, its price.

Needs mnist.npz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout). What is finished of a scale is
kept in build/study-SCALE; a run that was broken off goes on, and its CPU seconds are then those of the last part.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from harness import save
from hauberk.core.finding import Table
from hauberk.study import run_study
from mnist import folder


def main() -> None:
    """Run the study and write its tables."""
    scale = sys.argv[1] if len(sys.argv) > 1 else "smoke"
    kept = Path(__file__).parent.parent / "build" / f"study-{scale}"
    fresh = not kept.exists()
    began = time.process_time()
    report = run_study(str(folder() / "mnist.npz"), kept, scale=scale)
    seconds = time.process_time() - began
    first, second = report.findings[:2]
    tables = [one for finding in (first, second) for one in finding.evidence if isinstance(one, Table)]
    radii = next(one for one in tables if one.title == "By radius of training")
    rest = [one for one in tables if one is not radii]
    notes = [f"{seconds:.0f} CPU-s from the images to the report{'' if fresh else ' (of this part: the rest was kept)'}.", ""]
    notes += [f"* {finding.summary}." for finding in (first, second)]
    notes += ["", *(f"* {note}" for note in first.notes)]
    for table in rest:
        notes += ["", f"{table.title}:", "", "| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * len(table.columns)]
        notes += ["| " + " | ".join(map(str, row)) + " |" for row in table.rows]
    content = {"seconds": seconds, "fresh": fresh, "findings": [one.to_dict() | {"evidence": []} for one in report.findings]}
    save(
        f"study_{scale}", f"Robustness and leakage on MNIST, scale {scale}", content, [str(one) for one in radii.columns],
        [[str(cell) for cell in row] for row in radii.rows], notes,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
