"""The contract of corruptions: what every corruption promises is enforced here once, so that a corruption is only its idea."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.attacks import refuse_no_tensor
from hauberk.core.card import Card, registry
from hauberk.core.errors import DataError, UsageError, nearest
from hauberk.core.threat import Bounds
from hauberk.robustness.natural.draws import Draws

Parameters = dict[str, Tensor]
Size = tuple[int, int]
Points = Callable[[Tensor], Tensor]
HENDRYCKS = "Hendrycks and Dietterich 2019, arXiv:1903.12261"
SMALL_SIDE = 64
CACHED, LIGHT, FAST = 2**19, 2**21, 2**24  # values worked on at a time, on a CPU (so that they stay in its cache) and elsewhere
# What needs little memory beside its result wins more by making few results than by keeping all in the cache.
LIGHTER = ("noise", "light", "geometry", "storage")
SHARED = """

    Arguments:
        x: images, shape (n, channels, height, width), inside `bounds`; floating, or bytes with `bounds=(0, 255)`.
        severity: 0 (the images as they are) to 5. The strength is read from the card: one table for images whose shorter side
            is at most 64 pixels, one for larger ones.
        generator: of all random draws; None takes one that is always seeded alike. It gives one seed to each image, so that an
            image is corrupted the same alone and in a batch.
        bounds: lowest and highest input; numbers, or one per feature.

    Returns:
        The corrupted images: shape, dtype and device of x, inside `bounds`.

    Raises:
        DataError: for anything but finite images inside the bounds.
        UsageError: for a severity that is not 0 to 5, or bounds that are not finite.
"""


class Corruption(Protocol):
    """What `@natural` returns."""

    __name__: str

    def __call__(
        self, x: Tensor, severity: int, *, generator: torch.Generator | None = None, bounds: Bounds = (0.0, 1.0)
    ) -> Tensor:
        """Return corrupted images, shape (n, channels, height, width)."""
        ...


@dataclasses.dataclass(frozen=True)
class Warp:
    """How pixels move. Positions are (n, m, 2), across then down, in pixels from the top left corner of the image.

    Arguments:
        source: from positions in the new image to those in the old one, where the pixels come from.
        target: from positions in the old image to those in the new one; None where it has no closed form.
        straight: whether straight lines stay straight, so that the corners of a box tell where it goes.
    """

    source: Points
    target: Points | None
    straight: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A corruption taken apart: its tables, how its parameters are drawn, what it does with them, and how pixels move."""

    name: str
    tables: Mapping[str, tuple[Any, ...]]
    function: Callable[[Tensor, Any, Draws], Tensor]
    sample: Callable[[Any, Draws, Size], Parameters] | None
    warp: Callable[[Parameters, Size], Warp] | None

    def level(self, severity: int, size: Size) -> Any:
        """Return the level of a severity of 1 to 5 for images of that size."""
        return self.tables["small" if min(size) <= SMALL_SIDE else "large"][severity - 1]


RECIPES: dict[str, Recipe] = {}


def natural(
    *, question: str, family: str, small: Sequence[Any], large: Sequence[Any] | None = None, paper: str = HENDRYCKS,
    preset: str = "standard", sample: Callable[[Any, Draws, Size], Parameters] | None = None, **more: Any,
) -> Callable[[Callable[[Tensor, Any, Draws], Tensor]], Corruption]:
    """Return a decorator that records a corruption and keeps its contract.

    The function written is `(x, level, draws) -> x` on images in [0, 1], in float32 or float64, which it must not write to. What
    it becomes takes a severity in place of a level, any bounds and dtype, refuses bad input at the door, works on blocks of
    images, so that its memory does not grow with the batch, and returns images inside the bounds.

    Arguments:
        question: what running it answers.
        family: noise, blur, light, geometry, weather or storage.
        small, large: the five levels for small images and for large ones; None takes the same for both.
        paper: the source of the idea and, where it has any, of the levels.
        preset: the smallest preset whose checks use it.
        sample: `(level, draws, (height, width)) -> parameters`, one per image; the function then takes them for the level.
        more: `warp`, from parameters and size to a `Warp`, for what moves pixels; `ordered=False` for published levels whose mean
            squared change does not grow with every step.
    """
    tables = {"small": tuple(small), "large": tuple(small if large is None else large)}

    def record(function: Callable[[Tensor, Any, Draws], Tensor]) -> Corruption:
        called = function.__name__.replace("_", "-")
        recipe = Recipe(called, tables, function, sample, more.get("warp"))

        @functools.wraps(function)
        def run(
            x: Tensor, severity: int, *, generator: torch.Generator | None = None, bounds: Bounds = (0.0, 1.0)
        ) -> Tensor:
            _known(severity)
            ends = _ends(called, x, bounds)
            if severity == 0 or not len(x):
                return x.clone()
            size = (x.shape[2], x.shape[3])
            level = recipe.level(severity, size)

            def work(unit: Tensor, draws: Draws, block: slice) -> Tensor:
                return function(unit, level if sample is None else sample(level, draws.exact(), size), draws)

            return _in_blocks(work, x, rng.given(generator, 0, "corruption", called), ends, family in LIGHTER)

        run.__doc__ = (inspect.getdoc(function) or "") + SHARED
        run.__signature__ = inspect.signature(Corruption.__call__).replace(  # type: ignore[attr-defined]
            parameters=list(inspect.signature(Corruption.__call__).parameters.values())[1:]
        )
        facts = {"family": family, "ordered": more.get("ordered", True), **tables}
        registry.add(Card(called, "corruption", run, question, None, paper, ("aisec:model-misjudgment",), preset, facts))
        RECIPES[called] = recipe
        return run

    return record


def sample_parameters(
    name: str, severity: int, n: int, size: Size, *, generator: torch.Generator | None = None
) -> Parameters:
    """Draw the parameters that a corruption takes at a severity, the automatic form of the explicit ones.

    Arguments:
        name: of a corruption that has parameters, such as `rotate`.
        severity: 1 to 5.
        n: number of images.
        size: (height, width) of the images in pixels.
        generator: of the draws; in the same state, the corruption draws the same parameters.

    Returns:
        The parameters by name, each of shape (n, ...), float64; `applied` and `moved_boxes` take them.

    Raises:
        UsageError: for a corruption without parameters, or a severity that is not 1 to 5.
    """
    recipe = recipe_of(name)
    _known(severity)
    if severity == 0 or recipe.sample is None:
        parametric = ", ".join(key for key, one in RECIPES.items() if one.sample is not None)
        raise UsageError(f"{name} at severity {severity} has no parameters", want=f"severity 1 to 5 of one of: {parametric}")
    draws = Draws(n, rng.given(generator, 0, "corruption", name), torch.empty(0, dtype=torch.float64))
    return recipe.sample(recipe.level(severity, size), draws, size)


def applied(
    name: str, x: Tensor, parameters: Mapping[str, Tensor | float], *, generator: torch.Generator | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    """Corrupt images with explicit parameters, on any bounds and dtype.

    Arguments:
        name: of a corruption that has parameters.
        x: images, shape (n, channels, height, width), inside `bounds`; floating, or bytes with `bounds=(0, 255)`.
        parameters: all that `sample_parameters` names, each of shape (n, ...), or one number for all images.
        generator: of the noise, where the corruption has any.
        bounds: lowest and highest input; numbers, or one per feature.

    Returns:
        The corrupted images: shape, dtype and device of x, inside `bounds`.

    Raises:
        UsageError: for a corruption without parameters, or parameters missing or unknown.
        DataError: for anything but finite images inside the bounds, or parameters that are not one per image.
    """
    recipe = recipe_of(name)
    ends = _ends(name, x, bounds)
    wanted = sample_parameters(name, 1, 0, (x.shape[2], x.shape[3]))
    if set(wanted) != set(parameters):
        raise UsageError(f"{name} was given {sorted(parameters) or 'no parameters'}", want=f"all of {sorted(wanted)}")
    each = {key: spread(value, x, key) for key, value in parameters.items()}
    if not len(x):
        return x.clone()

    def work(unit: Tensor, draws: Draws, block: slice) -> Tensor:
        return recipe.function(unit, {key: value[block] for key, value in each.items()}, draws)

    return _in_blocks(work, x, rng.given(generator, 0, "corruption", name), ends)


def recipe_of(name: str) -> Recipe:
    """Return the recipe of a corruption. Raises UsageError naming the nearest."""
    if name not in RECIPES:
        raise UsageError(f"there is no corruption called '{name}'", fix=nearest(name, tuple(RECIPES)))
    return RECIPES[name]


def spread(
    value: Tensor | float, x: Tensor, name: str = "a parameter", *, least: float = -math.inf, above: float = -math.inf
) -> Tensor:
    """Return a parameter as float64 on x's device, one per image, shape (n, ...).

    Raises DataError where it is not, or is below `least`, or not above `above`.
    """
    found = torch.as_tensor(value, dtype=torch.float64, device=x.device)
    found = found.expand(len(x)) if found.ndim == 0 else found
    if len(found) != len(x) or not bool(found.isfinite().all()):
        raise DataError(f"{name} has shape {tuple(found.shape)}", want=f"finite numbers, one for each of {len(x)} images")
    if not bool(((found >= least) & (found > above)).all()):
        raise DataError(
            f"{name} is {float(found.min()):.4g}", want=f"{least:g} or more" if least > -math.inf else f"more than {above:g}"
        )
    return found


def like_images(value: Tensor, x: Tensor) -> Tensor:
    """Return a parameter, shape (n,), in x's dtype and in a shape that broadcasts with images: (n, 1, 1, 1)."""
    return value.to(x).view(-1, 1, 1, 1)


def _in_blocks(
    work: Callable[[Tensor, Draws, slice], Tensor], x: Tensor, generator: torch.Generator, ends: tuple[Tensor, Tensor, bool],
    light: bool = False,
) -> Tensor:
    """Run the work on blocks of images scaled to [0, 1], and scale back."""
    low, high, inside = ends
    plain = low.numel() == high.numel() == 1 and float(low) == 0 and float(high) == 1
    size = FAST if x.device.type != "cpu" else LIGHT if light else CACHED
    most = max(1, size // max(1, x[0].numel()))
    step = math.ceil(len(x) / math.ceil(len(x) / most))  # blocks alike in size
    through = x.requires_grad and torch.is_grad_enabled()
    parts: list[Tensor] = []
    out: Tensor | None = None
    for start in range(0, len(x), step):
        block = slice(start, start + step)
        exact = x[block] if x.dtype in (torch.float32, torch.float64) else x[block].float()
        if not plain:
            least, top = low.to(exact), high.to(exact)
            span = torch.where(top > least, top - least, torch.ones_like(top))
            exact = (exact - least) / span
        unit = exact if plain and inside else exact.clamp(0, 1)
        done = work(unit, Draws(len(unit), generator, unit), block)
        if plain and not through and x.dtype == done.dtype:
            if step == len(x) and _alone(done, x):  # fresh memory costs more than the arithmetic
                return done.clamp_(0, 1)
            out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
            torch.clamp(done, 0, 1, out=out[block])
            continue
        done = done.clamp(0, 1)
        if not plain:
            done = torch.minimum(torch.maximum(least + done * (top - least), least), top)
        done = (done if x.is_floating_point() else done.round()).to(x.dtype)
        if done.dtype in (torch.float16, torch.bfloat16):  # fewer digits than the ends may have: rounding steps over them
            done = torch.minimum(torch.maximum(done, _inner(low, done, 1)), _inner(high, done, -1))
        if through:
            parts.append(done)
            continue
        out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
        out[block] = done
    return torch.cat(parts) if out is None else out


def _inner(end: Tensor, like: Tensor, way: int) -> Tensor:
    """Return the end in the dtype of `like`: the next number upwards (way 1) or downwards (-1) where rounding steps outside."""
    cast = end.to(like)
    outside = (cast.double() - end.to(like.device)) * way < 0
    return torch.where(outside, torch.nextafter(cast, torch.full_like(cast, way * torch.inf)), cast)


def _alone(done: Tensor, x: Tensor) -> bool:
    """Whether a result has memory of its own, and none beside it."""
    held = done.untyped_storage()
    return (
        done.is_contiguous() and held.nbytes() == done.numel() * done.element_size()
        and held.data_ptr() != x.untyped_storage().data_ptr()
    )


def _known(severity: object) -> None:
    if isinstance(severity, bool) or not isinstance(severity, int) or not 0 <= severity <= 5:
        raise UsageError(f"severity is {severity!r}", want="a whole number from 0 to 5")


def _ends(name: str, x: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor, bool]:
    """Return the bounds as tensors on x's device, and whether x is strictly inside, after refusing what cannot be corrupted."""
    refuse_no_tensor(x, "x")
    if x.ndim != 4 or not (x.is_floating_point() or x.dtype == torch.uint8):
        raise DataError(
            f"{name} was given shape {tuple(x.shape)} of {x.dtype}",
            want="images (n, channels, height, width), floating or bytes", fix="Scale other whole numbers first: x.float() / top",
        )
    if x.shape[3] in (1, 3) and x.shape[1] not in (1, 2, 3, 4) and min(x.shape[1:3]) >= 8:
        raise DataError(
            f"{name} was given shape {tuple(x.shape)}, which reads as {x.shape[1]} channels on images {x.shape[3]} pixels wide",
            want="images (n, channels, height, width)", fix="Channels come last here: x.permute(0, 3, 1, 2)",
        )
    if 0 in x.shape[1:]:
        raise DataError(f"{name} was given shape {tuple(x.shape)}", want="images of one channel, row and column at least")
    low, high = (torch.as_tensor(end, device=x.device, dtype=torch.float64) for end in bounds)
    for end in (low, high):
        if end.ndim > 3 or any(own not in (1, side) for own, side in zip(end.shape[::-1], x.shape[:0:-1], strict=False)):
            raise UsageError(
                f"a bound has shape {tuple(end.shape)}", want=f"a number, or one that spreads over an image {tuple(x.shape[1:])}"
            )
    single = low.numel() == high.numel() == 1
    if single:  # as plain numbers: a hundredfold quicker than operations on tensors of one number
        bottom, top = float(low), float(high)
        known = math.isfinite(bottom) and math.isfinite(top) and bottom <= top
    else:
        known = bool((low.isfinite() & high.isfinite() & (low <= high)).all())
    if not known:
        raise UsageError(f"bounds are {bounds}", want="two finite ends, the lower first")
    if not x.numel():
        return low, high, True
    if single:
        slack = 1e-5 * (top - bottom)
        least, most = (float(end) for end in x.detach().aminmax())
        fits, inside = least >= bottom - slack and most <= top + slack, least >= bottom and most <= top
    else:
        slack = 1e-5 * float((high - low).max())
        fits, inside = bool(((x >= low - slack) & (x <= high + slack)).all()), False
    if not fits:
        raise DataError(
            f"x spans [{float(x.min()):.4g}, {float(x.max()):.4g}]",
            want=f"finite images in [{float(low.min()):.4g}, {float(high.max()):.4g}]",
            fix="Give unnormalised images, or state their bounds: bounds=(low, high), (0, 255) for bytes",
        )
    return low, high, inside
