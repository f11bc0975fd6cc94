"""validate: the door. Bad data, and a model that does not fit it, are refused here, before any check starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from hauberk.core import progress
from hauberk.core.access import Access
from hauberk.core.data import Data, Split
from hauberk.core.errors import DataError, HauberkError, ModelError
from hauberk.core.overlap import fingerprints, looked_at, overlap, remember
from hauberk.core.rng import generator
from hauberk.core.target import ENOUGH, Target

PART = 32 << 20  # bytes of samples looked at at once


def validate(target: Target, data: Data) -> list[str]:
    """Look at all samples and labels, and ask the model about at most 16 of them.

    Where it answers one column within [0, 1], 64 points are asked about: they tell probabilities, cut at .5, from logits, cut at
    0, before any check depends on it.

    Arguments:
        target: the model; what it answers tells whether it gives logits, probabilities or labels.
        data: all roles are read in parts, none is held in memory.

    Returns:
        What was noticed and should be known, one sentence each.

    Raises:
        DataError: for an empty split, a value that is not finite or outside the bounds, labels out of range, one class only, or
            splits that do not match; the split and the first bad sample are named.
        ModelError: when the model does not take the samples, or answers anything but one finite row of `data.classes` scores.
        BudgetExceeded: when the target's budget does not allow the questions.
    """
    bounds = _bounds(data)
    for role, split in data.splits().items():
        if not len(split):
            fix = "Give at least a few samples of each class" if role == "test" else f"Leave the {role} split out"
            raise DataError(f"the {role} split is empty", want="samples with labels", fix=fix)
        if split.shape != data.test.shape:
            raise DataError(
                f"a {role} sample has shape {split.shape}, a test sample {data.test.shape}", want="one shape in all splits",
                fix="Prepare the splits in the same way",
            )
        _refuse_labels(role, split, data)
    for role, split in data.splits().items():
        compared = data.train is not None and role != "trusted"
        _refuse_samples(role, split, bounds, looked_at(split) if compared else torch.empty(0, dtype=torch.long))
    notices = [*_missing_classes(data), *_shared_samples(data)]
    if target.bounds is not None and not _same(target.bounds, data.bounds):
        notices.append("the target's bounds differ from the data's: attacks that are given a target alone keep to the target's")
    _refuse_model(target, data)
    return [*notices, *target.notices]


def _bounds(data: Data) -> tuple[Tensor, Tensor]:
    low, high = (torch.as_tensor(end).double() for end in data.bounds)
    for end in (low, high):
        if not _fits(end, data.test.shape):
            raise DataError(f"the bounds have shape {tuple(end.shape)}", want=f"numbers, or one per feature: {data.test.shape}")
    if not bool((low <= high).all()) or not bool((low < high).any()):
        found = f"the bounds are {_span(low)} to {_span(high)}"
        raise DataError(found, want="the lowest input below the highest", fix="Swap the two ends")
    return low, high


def _fits(end: Tensor, shape: tuple[int, ...]) -> bool:
    sizes = zip(reversed(end.shape), reversed(shape), strict=False)
    return end.ndim <= len(shape) and all(own in (1, wanted) for own, wanted in sizes)


def _refuse_labels(role: str, split: Split, data: Data) -> None:
    y = split.y
    if y.is_floating_point() is data.is_classification:
        found = f"the {role} labels have dtype {y.dtype}, the test labels {data.test.y.dtype}"
        raise DataError(found, want="the same in all splits", fix="Give classes as integers in every split")
    if not data.is_classification:
        if not bool(y.isfinite().all()):
            at = int((~y.isfinite()).nonzero()[0])
            raise DataError(f"the {role} value at index {at} is {float(y[at])}", want="finite values", fix="Remove the sample")
        return
    highest = data.classes if data.classes is not None else int(y.max()) + 1
    outside = (y < 0) | (y >= highest)
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        raise DataError(
            f"the {role} label at index {at} is {int(y[at])} ({int(outside.sum())} labels are out of range)",
            want=f"0 to {highest - 1}, as there are {highest} classes",
            fix="Number the classes from 0, or state the number of classes",
        )
    if role in ("test", "train") and bool((y == y[0]).all()):
        raise DataError(
            f"all {len(y)} {role} labels are {int(y[0])}", want="samples of two classes or more",
            fix="Check the label column, or shuffle the data before it is cut",
        )


def _refuse_samples(role: str, split: Split, bounds: tuple[Tensor, Tensor], marked: Tensor) -> None:
    """Look at all samples; of those at the sorted positions `marked` the fingerprints are kept: none is read again for them."""
    slack = 1e-5 * float((bounds[1] - bounds[0]).max().clamp(max=1e6))
    low, high = (end.float() for end in bounds)  # float32 holds the bounds within the slack, at half the memory
    marks = []
    for start, x in _parts(role, split):
        if not x.is_floating_point():
            raise DataError(f"the {role} samples have dtype {x.dtype}", want="floating point", fix="Scale bytes first: x / 255")
        if tuple(x.shape[1:]) != split.shape:
            raise DataError(
                f"the {role} samples from index {start} have shape {tuple(x.shape[1:])}", want=f"{split.shape}, as the others"
            )
        bad = ~x.isfinite()
        if bool(bad.any()):
            at, value = _first(bad, x)
            raise DataError(
                f"the {role} sample at index {start + at} holds {value}", want="finite numbers",
                fix="Fill in or remove what is missing",
            )
        bad = (x < low.to(x.device) - slack) | (x > high.to(x.device) + slack)
        if bool(bad.any()):
            at, value = _first(bad, x)
            raise DataError(
                f"the {role} sample at index {start + at} holds {value}, outside the bounds",
                want=f"all inputs in [{_span(low)}, {_span(high)}]",
                fix="Give inputs before normalisation (load_model has normalize=), or state the bounds of the data",
            )
        here = marked[(marked >= start) & (marked < start + len(x))] - start
        if len(here):
            marks.append(fingerprints(x if len(here) == len(x) else x[here]))
    if marks:
        remember(split, torch.cat(marks))


def _parts(role: str, split: Split) -> Iterator[tuple[int, Tensor]]:
    rows = max(1, PART // (8 * max(math.prod(split.shape), 1)))
    starts = range(0, len(split), rows)
    for start in progress.track(starts, f"reading {role} data"):
        yield start, split.x.take(torch.arange(start, min(start + rows, len(split))))


def _missing_classes(data: Data) -> list[str]:
    if not data.is_classification or data.classes is None:
        return []
    seen = len(data.test.y.unique())
    return [f"the test split holds {seen} of {data.classes} classes"] if seen < data.classes else []


def _shared_samples(data: Data) -> list[str]:
    if data.train is None:
        return []
    found = overlap(data)
    if not found.count:
        return []
    test, train = len(data.test), len(data.train)
    asked = f"{found.test} test samples" + ("" if found.test == test else " looked at")
    within = "the training data" if found.train == train else f"{found.train} training samples looked at, of {train}"
    return [f"{found.count} of {asked} are also in {within}: on those the model is not tested on anything new"]


def _refuse_model(target: Target, data: Data) -> None:
    """Ask about 16 samples: 8 to learn how answers read, the others to look at them and at the gradient."""
    every = torch.linspace(0, len(data.test) - 1, min(16, len(data.test))).round().long().unique()
    x, view = data.test.x.take(every), target.fresh()
    try:
        width = view.probe(x[:8])
        if width is not None and view.outputs == "auto":
            _settle(view, data, ENOUGH - len(x[:8]))
        rest = x[8:14] if len(x) > 8 else x[:6]
        answer = view.labels(rest) if width is None or view.access < Access.SCORE else view.logits(rest)
    except HauberkError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the model refused samples of shape {tuple(x.shape[1:])} ({type(error).__name__}: {message})",
            want="a model for samples of this shape", fix="Reshape the data, or wrap the model in a module that does",
        ) from error
    if width is None:
        if data.is_classification and data.classes is not None and bool(((answer < 0) | (answer >= data.classes)).any()):
            raise ModelError(f"the model answered the label {int(answer.max())}", want=f"0 to {data.classes - 1}")
        return
    scores = answer.ndim == 2  # where labels alone were granted, NaN shows as the label -1
    bad = answer.isnan() | (answer == torch.inf) if scores else answer == -1
    if bool(bad.any()):
        raise ModelError(
            f"the model answered {float(answer[bad][0]) if scores else 'nan'} to a test sample", want="finite scores",
            fix="Check its weights, and that inputs have the scale it was trained on",
        )
    if data.is_classification and data.classes is not None and width != data.classes:
        _refuse_labels_beyond(data, width)
        raise ModelError(
            f"the model returns {width} scores per sample and the data has {data.classes} classes", want=f"{data.classes} scores",
            fix=f"Check that model and data belong together; if some classes have no sample, state classes={width} for the data",
        )
    if scores and len(rest) > 1 and bool((answer == answer[0]).all()) and not bool((rest == rest[0]).all()):
        target.notice("the model gave exactly the same scores to different samples: it may ignore its input")
    if target.access >= Access.GRADIENT:
        _find_gradient(target, view, x[-2:])


def _settle(view: Target, data: Data, missing: int) -> None:
    """Ask about test samples and, since logits stray farthest there, about corners of the range of the inputs."""
    x = data.test.x.take(torch.linspace(0, len(data.test) - 1, min(missing // 2, len(data.test))).round().long().unique())
    low, high = (torch.as_tensor(end).to(x).expand(x.shape[1:]) for end in data.bounds)
    low, high = torch.where(low.isfinite(), low, x.amin(0)), torch.where(high.isfinite(), high, x.amax(0))
    draw = torch.rand((missing - len(x), *x.shape[1:]), generator=generator(0, "validate", "corners"))
    draw[0], draw[1] = 0, 1
    view.probe(x)
    if view.outputs != "auto":
        return
    try:
        view.probe(torch.where(draw.to(x.device) < 0.5, low, high))
    except HauberkError:
        raise
    except Exception:
        # A model need not take points that are no samples: then its answers go on being read as what they looked like so far.
        view.notice("the model answers one column, so far within [0, 1], that reads as probabilities: state outputs= to be sure")


def _refuse_labels_beyond(data: Data, width: int) -> None:
    for role, split in data.splits().items():
        beyond = split.y >= width
        if bool(beyond.any()):
            at = int(beyond.nonzero()[0])
            raise ModelError(
                f"label {int(split.y[at])} at index {at} of {role}, but the model has {width} scores (labels 0 to {width - 1})",
                want=f"labels from 0 to {width - 1}, or a model with a score for each class",
                fix="Check that model and data belong together, and that labels count from 0",
            )


def _find_gradient(target: Target, view: Target, x: Tensor) -> None:
    leaf = x.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            reached = _leads_to(view.logits(leaf), leaf)
    except RuntimeError as error:
        # It has just answered the same samples without gradients: what failed is asking for them, and its words say why.
        message = " ".join(str(error).split())[:300]
        target.limit(Access.SCORE, f"the model fails where gradients are asked for ({type(error).__name__}: {message})")
        return
    if not reached:
        target.limit(Access.SCORE, "no gradient flows from the model's answers to its input")


def unnarrowed(target: Target) -> Target:
    """Return a view with the gradients that were granted, also where validation found that none gets through the model.

    For those who ask why: its account is the target's. A model that was given without them, or told not to grant them, stays so.
    """
    view = target.fresh()
    if view._shared.most is Access.SCORE:
        view._shared = copy.copy(view._shared)
        view._shared.most = view.predictor.access
    return view


def _leads_to(answer: Tensor, leaf: Tensor) -> bool:
    """Whether the graph of an answer reaches its input; looked up, not computed: nothing is differentiated."""
    left, seen = [answer.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is leaf:
            return True
        left += [one for one, _ in node.next_functions]
    return False


def _first(bad: Tensor, x: Tensor) -> tuple[int, str]:
    at = int(bad.flatten(1).any(1).nonzero()[0])
    return at, f"{float(x[at][bad[at]].flatten()[0]):.6g}"


def _span(end: Tensor) -> str:
    if not end.ndim:
        return f"{float(end):.6g}"
    return f"{float(end.min()):.4g} … {float(end.max()):.4g}, by feature"


def _same(one: tuple[float | Tensor, float | Tensor], other: tuple[float | Tensor, float | Tensor]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(bool((torch.as_tensor(a).double() == torch.as_tensor(b).double()).all()) for a, b in pairs)
