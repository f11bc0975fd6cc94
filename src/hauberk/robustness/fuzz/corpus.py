"""The corpus on disk: one file a round, and the state after it; whole or not there, and read as if a stranger had made them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.core.files import write_whole
from hauberk.robustness.fuzz.mutate import Step

CAMPAIGN = "campaign.json"
LARGEST_JSON = 64 << 20
MOST_ROUNDS = 1_000_000
MOST_STEPS = 64
Arrays = dict[str, NDArray[Any]]


@dataclasses.dataclass
class Entry:
    """A seed of the queue.

    Arguments:
        origin: position of the clean seed it descends from.
        steps: how it was made from that.
        image, reference: it, and what validity is judged against, shape of a sample.
        moved: whether an affine mutation was among the steps.
        gain: what it added to the coverage that steers.
        margin: score of the true class less that of the best other one; 0 where there are no scores.
        picks: how often it was chosen.
    """

    origin: int
    steps: tuple[Step, ...]
    image: Tensor
    reference: Tensor
    moved: bool = False
    gain: float = 0.0
    margin: float = 0.0
    picks: int = 0


@dataclasses.dataclass
class Failure:
    """A mutant on which the model fails.

    Arguments:
        origin: position of its clean seed.
        steps: how it was made from that.
        kind: the objective, or `crash`.
        label: true label of the seed; -1 for regression.
        answer: the label answered; -1 where there was none.
        image, reference: the mutant, and what validity was judged against.
        features: of the mutant, shape (width,); zeros where the model crashed.
        blend: how far it goes from the reference to what the steps make, in (0, 1].
        replays: whether the steps, done again on the seed alone, make the model fail alike; None before it was tried.
        cluster: failures of one number are one fault; -1 before they are sorted.
    """

    origin: int
    steps: tuple[Step, ...]
    kind: str
    label: int
    answer: int
    image: Tensor
    reference: Tensor
    features: Tensor
    blend: float = 1.0
    replays: bool | None = None
    cluster: int = -1


class Journal:
    """Keeps the rounds of one search in a folder.

    Arguments:
        folder: where; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, number: int, entries: list[Entry], failures: list[Failure], state: dict[str, Any], arrays: Arrays) -> None:
        """Keep a finished round, and then the state after it. A round without its state is done again."""
        head = {
            "entries": [[one.origin, [step.row() for step in one.steps], one.moved, one.gain, one.margin] for one in entries],
            "failures": [
                [one.origin, [step.row() for step in one.steps], one.kind, one.label, one.answer] for one in failures
            ],
        }
        if entries or failures:
            pictures = {
                "images": _stack([one.image for one in entries]), "references": _stack([one.reference for one in entries]),
                "failed": _stack([one.image for one in failures]),
                "failed_references": _stack([one.reference for one in failures]),
                "features": _stack([one.features for one in failures]),
            }
            write_arrays(self.folder / f"round-{number:06}.npz", head, pictures)
        write_arrays(self.folder / "state.npz", {**state, "round": number + 1}, arrays)

    def read(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], Arrays, list[Entry], list[Failure]] | None:
        """Return state, its arrays, entries and failures of all finished rounds; None where no round was finished.

        Arguments:
            shape: of a sample.

        Raises:
            DataError: for files that are damaged or do not belong together.
        """
        if not (self.folder / "state.npz").exists():
            return None
        state, arrays = read_arrays(self.folder / "state.npz")
        rounds = whole(state.get("round"), 0, MOST_ROUNDS, "round")
        entries: list[Entry] = []
        failures: list[Failure] = []
        for number in range(rounds):
            path = self.folder / f"round-{number:06}.npz"
            if not path.exists():
                continue
            head, held = read_arrays(path)
            try:
                made, failed = _entries(head, held, shape), _failures(head, held, shape)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise damaged(path, error) from error
            entries += made
            failures += failed
        return state, arrays, entries, failures


def write_arrays(path: Path, head: dict[str, Any], arrays: Arrays) -> None:
    """Write plain arrays and a JSON header as one .npz, whole or not at all. Flags are packed to bits."""
    shapes, plain = {}, {}
    for name, one in arrays.items():
        if one.dtype == np.bool_:
            shapes[name], plain[name] = list(one.shape), np.packbits(one)
        else:
            plain[name] = one
    text = json.dumps({"head": head, "bits": shapes}).encode()
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, json=np.frombuffer(text, np.uint8), **plain)
    write_whole(path, content.getvalue())


def read_arrays(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Return the header and the arrays of a file that `write_arrays` wrote.

    Raises:
        DataError: for anything else: no archive, Python objects, sizes that lie, a header that is no JSON object.
    """
    from hauberk.io.npz import read_members

    arrays = dict(read_members(path))
    text = arrays.pop("json", None)
    try:
        if text is None or text.dtype != np.uint8 or text.ndim != 1 or len(text) > LARGEST_JSON:
            raise ValueError("it has no header")
        content = json.loads(bytes(text))
        head, bits = content["head"], content["bits"]
        if not isinstance(head, dict) or not isinstance(bits, dict):
            raise ValueError("its header is no object")
        for name, shape in bits.items():
            count = math.prod(whole(side, 0, 2**40, "a side") for side in shape)
            if arrays[name].dtype != np.uint8 or arrays[name].size != (count + 7) // 8:
                raise ValueError(f"'{name}' does not have {count} flags")
            arrays[name] = np.unpackbits(arrays[name].reshape(-1), count=count).astype(bool).reshape(shape)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    return head, arrays


def whole(value: object, low: int, high: int, name: str) -> int:
    """Return a whole number out of a file. Raises DataError where it is none, or outside its range."""
    if type(value) is not int or not low <= value <= high:
        raise DataError(f"{name} is {str(value)[:40]}", want=f"a whole number from {low} to {high}", fix="The file is damaged")
    return value


def damaged(path: Path, error: BaseException) -> DataError:
    """Return the error for a file of the corpus that cannot be used."""
    return DataError(
        f"{path} cannot be used ({type(error).__name__}: {str(error)[:120]})", want="a file that this fuzzer wrote",
        fix="Remove the folder and start again",
    )


def begin(folder: Path, identity: dict[str, Any], resume: bool) -> None:
    """Take a folder for a campaign, or find that the campaign in it is the same one.

    Raises:
        UsageError: for a folder that holds a campaign and `resume` is not asked, or another campaign.
        DataError: for a description that cannot be read.
    """
    path = folder / CAMPAIGN
    if not path.exists():
        write_whole(path, json.dumps(identity, indent=1) + "\n")
        return
    if not resume:
        raise UsageError(
            f"{folder} holds a campaign already", want="an empty folder", fix="Use --resume, or choose another folder"
        )
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("it is too large")
        known = json.loads(path.read_text(encoding="utf-8"))
        differing = sorted(key for key in {*known, *identity} if not _alike(known.get(key), identity.get(key)))
    except (ValueError, OSError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error
    if differing:
        raise UsageError(
            f"the campaign in {folder} differs in: {', '.join(map(str, differing[:6]))}", want="the same model, data and options",
            fix="Run it with the options of campaign.json, or choose another folder",
        )


def _alike(kept: Any, now: Any) -> bool:
    """Whether two parts of a description are equal, numbers with a point up to what another machine rounds."""
    if isinstance(kept, list) and isinstance(now, list):
        return len(kept) == len(now) and all(map(_alike, kept, now))
    if isinstance(kept, float) and isinstance(now, float):
        return math.isclose(kept, now, rel_tol=1e-4, abs_tol=1e-6)
    return type(kept) is type(now) and bool(kept == now)


def _entries(head: dict[str, Any], held: Arrays, shape: tuple[int, ...]) -> list[Entry]:
    rows = list(head["entries"])
    images, references = _samples(held, "images", len(rows), shape), _samples(held, "references", len(rows), shape)
    return [
        Entry(
            whole(origin, 0, 2**31, "origin"), read_steps(steps), images[row], references[row], bool(moved), float(gain),
            float(margin),
        )
        for row, (origin, steps, moved, gain, margin) in enumerate(rows)
    ]


def _failures(head: dict[str, Any], held: Arrays, shape: tuple[int, ...]) -> list[Failure]:
    rows = list(head["failures"])
    images = _samples(held, "failed", len(rows), shape)
    references = _samples(held, "failed_references", len(rows), shape)
    features = torch.from_numpy(np.array(held["features"]))
    return [
        Failure(
            whole(origin, 0, 2**31, "origin"), read_steps(steps), str(kind)[:80], whole(label, -1, 2**31, "label"),
            whole(answer, -1, 2**31, "answer"), images[row], references[row], features[row],
        )
        for row, (origin, steps, kind, label, answer) in enumerate(rows)
    ]


def _samples(held: Arrays, name: str, count: int, shape: tuple[int, ...]) -> Tensor:
    found = held[name]
    if not count:
        return torch.empty(0, *shape)
    if found.shape != (count, *shape) or not np.issubdtype(found.dtype, np.floating):
        raise ValueError(f"'{name}' has shape {found.shape} of {found.dtype}")
    return torch.from_numpy(np.array(found))


def read_steps(rows: object) -> tuple[Step, ...]:
    """Return the steps of a lineage out of a file. Raises DataError or ValueError for anything else."""
    if not isinstance(rows, list) or len(rows) > MOST_STEPS:
        raise ValueError("the steps are no short list")
    return tuple(Step.read(row) for row in rows)


def _stack(rows: list[Tensor]) -> NDArray[Any]:
    return torch.stack(rows).cpu().numpy() if rows else np.empty(0, np.float32)
