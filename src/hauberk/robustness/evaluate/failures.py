"""Failures under corruption, kept in a folder: a picture each, and an index that says what each shows."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.core.files import cannot_write, write_whole
from hauberk.core.picture import picture
from hauberk.core.threat import Bounds
from hauberk.robustness.evaluate.corruption_metrics import CorruptedRun, corrupted_images

MOST = 10_000  # pictures in one folder
LARGEST = 4096  # pixels on a side


def failures(run: CorruptedRun) -> list[tuple[str, int, int]]:
    """Return (corruption, severity, sample) of each right answer that the corruption turned wrong, at its mildest severity.

    The mildest come first; among those the corruptions take turns.
    """
    broken = run.right[:, :1] & ~run.right[:, 1:]  # (corruptions, severities, n)
    first = broken & (broken.int().cumsum(1) == 1)
    found = []
    for severity in range(first.shape[1]):
        at_it = [first[row, severity].nonzero()[:, 0].tolist() for row in range(len(run.names))]
        lists = [[(name, severity + 1, sample) for sample in some] for name, some in zip(run.names, at_it, strict=True)]
        turns = itertools.zip_longest(*lists)
        found += [one for turn in turns for one in turn if one is not None]
    return found


def save_failures(
    folder: str | Path, run: CorruptedRun, x: Tensor, *, bounds: Bounds = (0.0, 1.0), seed: int = 0,
    class_names: Sequence[str] = (), limit: int = 100,
) -> Path:
    """Write the mildest failures of a run as PNG pictures, and `index.json`, which names for each what it shows.

    Arguments:
        folder: a new or empty one; nothing is ever written over.
        run: from `corrupted_run`, whose `bounds` and `seed` are to be given again: the pictures are made anew.
        x: the clean images of that run, shape (n, channels, height, width); one channel is drawn gray, three in colour, of any
            other number the first.
        bounds: lowest and highest input.
        seed: of the run.
        class_names: for people; they stand in the index alone, never in a file name.
        limit: pictures at most, up to 10,000.

    Returns:
        The path of the index. It is written last: where it is, all pictures are.

    Raises:
        UsageError: for a limit out of range, or a folder that holds anything or cannot be written.
        DataError: for images that are not those of the run, or of more than 4,096 pixels a side.
    """
    place = Path(folder)
    if not 1 <= limit <= MOST:
        raise UsageError(f"limit is {limit}", want=f"1 to {MOST:,} pictures")
    if x.ndim != 4 or len(x) != len(run.y) or max(x.shape[2:]) > LARGEST:
        wanted = f"the {len(run.y)} images of the run, at most {LARGEST} pixels a side"
        raise DataError(f"x has shape {tuple(x.shape)}", want=wanted)
    if not _free(place):
        raise UsageError(f"{place} is there and not an empty folder", want="a new or empty folder")
    found = failures(run)
    chosen = found[:limit]
    entries = {}
    # One kind and severity at a time, so that one corrupted batch is in memory.
    for name, severity in dict.fromkeys(one[:2] for one in chosen):
        images = corrupted_images(name, severity, x, bounds=bounds, seed=seed)
        row = tuple(run.names).index(name)
        for sample in (at for kind, level, at in chosen if (kind, level) == (name, severity)):
            file = f"{_safe(name)}-{severity}-{sample:06d}.png"
            drawn = picture(images[sample], "", bounds=bounds, width=x.shape[3])
            write_whole(place / file, base64.b64decode(drawn.png))
            label, answer = int(run.y[sample]), int(run.answers[row, severity, sample])
            entries[name, severity, sample] = {
                "file": file, "corruption": name, "severity": severity, "sample": sample, "label": label, "answer": answer,
                "label_name": _named(label, class_names), "answer_name": _named(answer, class_names),
            }
    index = place / "index.json"
    listed = [entries[one] for one in chosen]
    content = {"kind": "failures under corruption", "seed": seed, "found": len(found), "failures": listed}
    write_whole(index, json.dumps(content, indent=1, ensure_ascii=True) + "\n")
    return index


def _free(place: Path) -> bool:
    """Whether the place is a folder that holds nothing, or is not there; a link to one is neither."""
    try:
        return not place.is_symlink() and (not place.exists() or (place.is_dir() and not any(place.iterdir())))
    except OSError as error:
        raise cannot_write(place, error) from error


def _safe(name: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", name.lower())[:60]


def _named(label: int, names: Sequence[str]) -> str:
    return str(names[label]) if 0 <= label < len(names) else str(label) if label >= 0 else "no label"
