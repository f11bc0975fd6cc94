"""The contract of every benchmark: contenders in turn in one process, one thread, medians, and what they ran on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
PEERS = HERE.parent / ".bench-peers"
if PEERS.is_dir():
    sys.path.append(str(PEERS))


def alternate(contenders: dict[str, Callable[[], Any]], *, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Run every contender once a round, in turn, and return its CPU seconds by round.

    The order turns by one each round, so that none always follows the same neighbour. CPU time of this process is taken: on a
    shared machine it is what the code costs, where wall time is what the neighbours do.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(warm_up + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began = time.process_time()
            contenders[name]()
            if turn >= warm_up:
                seconds[name].append(time.process_time() - began)
    return seconds


def ratios(seconds: dict[str, list[float]], floor: str) -> dict[str, dict[str, float]]:
    """Return for each contender the median seconds, and median, least and greatest ratio to the floor of the same round."""
    table = {}
    for name, times in seconds.items():
        shares = [one / base for one, base in zip(times, seconds[floor], strict=True)]
        table[name] = {
            "seconds": statistics.median(times), "ratio": statistics.median(shares), "least": min(shares),
            "greatest": max(shares),
        }
    return table


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    model = ""
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "cpu": model or platform.processor(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "system": platform.system(),
    }


def data_folder(needed: str) -> Path:
    """Return the folder of real data, HAUBERK_DATA or `../shared/data` beside the checkout, or end with what to do."""
    given = os.environ.get("HAUBERK_DATA")
    place = Path(given) if given else HERE.parents[1] / "shared" / "data"
    if not (place / needed).exists():
        sys.exit(f"{needed} is not there: set HAUBERK_DATA to the folder that holds it")
    return place


def save(name: str, title: str, content: dict[str, Any], columns: list[str], rows: list[list[str]], notes: list[str]) -> None:
    """Write results/NAME.json and results/NAME.md, and print the table."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    about = machine()
    (folder / f"{name}.json").write_text(json.dumps({"machine": about, **content}, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {title}", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *notes]
    text = "\n".join(lines) + "\n"
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
