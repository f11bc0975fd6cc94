"""The contracts of table and text corruptions, enforced here once, so that a corruption is only its idea."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hauberk.core import rng
from hauberk.core.errors import DataError, UsageError
from hauberk.core.kinds import method
from hauberk.robustness.inputs.columns import Columns
from hauberk.robustness.natural.draws import Draws

TAGS = ("aisec:model-misjudgment",)
BLOCK = 2**20  # cells worked on at a time
TABLE = """

    Arguments:
        x: rows, shape (n, features), finite.
        severity: 0 (the rows as they are) to 5; the five levels are on the card.
        columns: what the columns are like, from `Columns.of(clean_rows, bounds=..., structure=...)`.
        generator: of all draws; None takes one that is always seeded alike. It gives one seed to each row.

    Returns:
        The corrupted rows: shape, dtype and device of x, inside the bounds; whole numbers and one-hot groups stay what they are.

    Raises:
        DataError: for anything but finite rows with those columns.
        UsageError: for a severity that is not 0 to 5.
"""
TEXT = """

    Arguments:
        texts: any strings.
        severity: 0 (the texts as they are) to 5; the five levels, on the card, are shares of the characters it can touch.
        generator: of all draws; None takes one that is always seeded alike. It gives one seed to each text.

    Returns:
        The corrupted texts, in a new list.

    Raises:
        DataError: for anything but a sequence of strings.
        UsageError: for a severity that is not 0 to 5.
"""


class TableCorruption(Protocol):
    """What `@tabular` returns."""

    __name__: str

    def __call__(self, x: Tensor, severity: int, columns: Columns, *, generator: torch.Generator | None = None) -> Tensor:
        """Return corrupted rows, shape (n, features)."""
        ...


class TextCorruption(Protocol):
    """What `@textual` returns."""

    __name__: str

    def __call__(self, texts: Sequence[str], severity: int, *, generator: torch.Generator | None = None) -> list[str]:
        """Return corrupted texts."""
        ...


TableIdea = Callable[[Tensor, Any, Columns, Draws], Tensor]
TextIdea = Callable[[list[str], Sequence[int], NDArray[np.float64]], None]


def tabular(*, question: str, levels: Sequence[Any], paper: str, seeded: bool = True) -> Callable[[TableIdea], TableCorruption]:
    """Return a decorator that records a table corruption and keeps its contract.

    The function written is `(x, level, columns, draws) -> x` on float64 rows, which it must not write to; what leaves the ends
    or the structure of the columns is put back here.

    Arguments:
        question: what running it answers.
        levels: the five of the severities 1 to 5.
        paper: the source of the idea; ours where the levels are.
        seeded: whether it draws at all.
    """

    def record(function: TableIdea) -> TableCorruption:
        called = function.__name__.replace("_", "-")

        @functools.wraps(function)
        def run(x: Tensor, severity: int, columns: Columns, *, generator: torch.Generator | None = None) -> Tensor:
            _known(severity)
            _refuse_rows(called, x, columns)
            if severity == 0 or not x.numel():
                return x.clone()
            source, out = rng.given(generator, 0, "table corruption", called), torch.empty_like(x)
            step = max(1, BLOCK // x.shape[1])
            for start in range(0, len(x), step):
                exact = x[start : start + step].detach().double()
                done = function(exact, levels[severity - 1], columns, Draws(len(exact), source, exact))
                kept = done == exact  # to the bit, beyond the ends or off the grid as they may be
                made = _cast(columns.possible(done), x.dtype, columns)
                out[start : start + step] = torch.where(kept, x[start : start + step].detach(), made)
            return out

        _dress(run, function, TableCorruption, TABLE)
        recorded: TableCorruption = method(
            "table-corruption", question=question, paper=paper, tags=TAGS, preset="quick", levels=tuple(levels), seeded=seeded,
        )(run)
        return recorded

    return record


def textual(
    *, question: str, paper: str, touches: Callable[[str], bool], levels: Sequence[float] = (0.02, 0.05, 0.1, 0.15, 0.25),
) -> Callable[[TextIdea], TextCorruption]:
    """Return a decorator that records a text corruption and keeps its contract.

    The function written is `(cells, places, draw) -> None`: `cells` holds one string per character, which it changes at the
    places given, in rising order, by the numbers in [0, 1) drawn for each place. Places of a lower severity are among those of a
    higher one.

    Arguments:
        question: what running it answers.
        paper: the source of the idea.
        touches: which characters it can change.
        levels: the five shares of those characters.
    """

    def record(function: TextIdea) -> TextCorruption:
        called = function.__name__.replace("_", "-")

        @functools.wraps(function)
        def run(texts: Sequence[str], severity: int, *, generator: torch.Generator | None = None) -> list[str]:
            _known(severity)
            if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
                found = "one string" if isinstance(texts, str) else f"a {type(texts).__name__} that does not hold strings alone"
                raise DataError(f"{called} was given {found}", want="a sequence of strings", fix="Give a list: [text, …]")
            source = rng.given(generator, 0, "text corruption", called)
            seeds = torch.randint(2**62, (len(texts),), generator=source, device=source.device, dtype=torch.int64).tolist()
            share = levels[severity - 1] if severity else 0.0
            return [_edited(text, share, touches, function, seed) for text, seed in zip(texts, seeds, strict=True)]

        _dress(run, function, TextCorruption, TEXT)
        recorded: TextCorruption = method(
            "text-corruption", question=question, paper=paper, tags=TAGS, preset="quick", levels=tuple(levels),
        )(run)
        return recorded

    return record


def _edited(text: str, share: float, touches: Callable[[str], bool], edit: TextIdea, seed: int) -> str:
    if not share:
        return text
    open_ = [place for place, letter in enumerate(text) if touches(letter)]
    # Drawn whatever the severity, so that a stronger one strikes the same places and more.
    draw = np.random.default_rng(seed).random((2, len(text) + 1))
    count = min(len(open_), int(share * len(open_) + draw[0, -1]))  # a short text is struck in its due share of cases
    if not count:
        return text
    places = sorted(sorted(open_, key=lambda place: float(draw[0, place]))[:count])
    cells = list(text)
    edit(cells, places, draw[1])
    return "".join(cells)


def _cast(exact: Tensor, dtype: torch.dtype, columns: Columns) -> Tensor:
    """Return the rows in that dtype, back inside ends that the cast stepped over."""
    cast = exact.to(dtype)
    low, high = columns.low.to(dtype), columns.high.to(dtype)
    return torch.where(exact <= columns.low, low, torch.where(exact >= columns.high, high, cast))


def _dress(run: Callable[..., Any], function: Callable[..., Any], protocol: type, shared: str) -> None:
    """Give the wrapper the documentation and the signature that callers see."""
    call = inspect.signature(protocol.__call__)
    run.__doc__ = (inspect.getdoc(function) or "") + shared
    run.__signature__ = call.replace(parameters=list(call.parameters.values())[1:])  # type: ignore[attr-defined]


def _known(severity: object) -> None:
    if isinstance(severity, bool) or not isinstance(severity, int) or not 0 <= severity <= 5:
        raise UsageError(f"severity is {severity!r}", want="a whole number from 0 to 5")


def _refuse_rows(name: str, x: Tensor, columns: Columns) -> None:
    width = len(columns.centre)
    if x.ndim != 2 or x.shape[1] != width or not x.is_floating_point():
        raise DataError(f"{name} was given shape {tuple(x.shape)} of {x.dtype}", want=f"floating rows (n, {width})")
    if x.device != columns.centre.device:
        raise DataError(f"the rows are on {x.device} and the columns on {columns.centre.device}", want="both on one device")
    if not bool(x.isfinite().all()):
        raise DataError(f"{int((~x.isfinite()).sum())} cells are NaN or infinite", want="finite rows", fix="Fill gaps in first")
