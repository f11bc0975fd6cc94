"""Normal values from random bits by the ziggurat: layers of equal area under the density, where few need a logarithm.

Marsaglia and Tsang 2000, "The ziggurat method for generating random variables", Journal of Statistical Software 5(8). The layer
and the place in it are taken from disjoint bits, the place from 54 of them.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

LAYERS = 1024
_SHIFT = 10  # bits that choose the layer
_LOW_63 = (1 << 63) - 1
_UNIT = 2.0**-53  # of the place in a layer, from -1 to 1

Words = NDArray[np.int64]
Floats = NDArray[np.float64]
Fill = Callable[[Words], None]
_KEPT = threading.local()


@functools.cache
def layers() -> tuple[Floats, Floats, Floats]:
    """Return widths, the share of each layer that lies under the density as a whole, and heights.

    Layer 0 is the base: a strip below the density at the rightmost corner r, and the tail beyond; its width is its area over its
    height. Layer i above it ends at x_i and lies whole under the density up to x_(i+1).
    """
    low, high = 3.0, 6.0
    for _ in range(200):
        r = (low + high) / 2
        low, high = (r, high) if _chain(r)[1] else (low, r)
    x, _ = _chain(high)
    widths = np.array(x)
    inner = np.append(widths[1:], 0.0)
    heights = np.append(np.exp(-widths * widths / 2), 1.0)
    return widths * _UNIT, inner / widths / _UNIT, heights


def _chain(r: float) -> tuple[list[float], bool]:
    """Return the widths for a corner r, and whether the layers reach the top too soon."""
    area = r * math.exp(-r * r / 2) + math.sqrt(math.pi / 2) * math.erfc(r / math.sqrt(2))
    x = [area / math.exp(-r * r / 2), r]
    while len(x) < LAYERS:
        top = area / x[-1] + math.exp(-x[-1] * x[-1] / 2)
        if top >= 1:
            return x, True
        x.append(math.sqrt(-2 * math.log(top)))
    return x, area / x[-1] + math.exp(-x[-1] * x[-1] / 2) > 1


def normals(n: int, fill: Fill) -> Floats:
    """Return n standard normal values, float64, in working memory of this thread: they last until its next call.

    Arguments:
        n: how many.
        fill: writes uniform integers over all of int64 to an array, fresh each time.
    """
    widths, inner, _ = layers()
    more = n // 128 + 32  # candidates in the place of those that are rejected; and bits for the decisions
    size = n + more
    raw, layer = scratch("raw", size + more, np.int64), scratch("layer", size, np.int64)
    place, values = scratch("place", size, np.float64), scratch("values", size, np.float64)
    fill(raw)
    chances = raw[size:].copy()
    np.bitwise_and(raw[:size], LAYERS - 1, out=layer)
    np.right_shift(raw[:size], _SHIFT, out=raw[:size])
    np.copyto(place, raw[:size])
    np.take(widths, layer, mode="clip", out=values)
    np.multiply(values, place, out=values)
    np.abs(place, out=place)
    bounds = raw[:size].view(np.float64)  # the bits are used up
    np.take(inner, layer, mode="clip", out=bounds)
    unsure = np.flatnonzero(place >= bounds)
    if not len(unsure):
        return values[:n]
    if len(unsure) > more:
        chances = _fresh(len(unsure), fill)
    rejected = unsure[~_decided(values, unsure, layer[unsure], chances, fill)]
    last = int(np.searchsorted(rejected, n))
    spare = np.delete(values[n:], rejected[last:] - n)
    if len(spare) < last:
        done = values[:n].copy()
        spare = normals(last, fill).copy()
        values = done
    values[rejected[:last]] = spare[:last]
    return values[:n]


def _decided(values: Floats, unsure: NDArray[np.intp], layer: Words, chances: Words, fill: Fill) -> NDArray[np.bool_]:
    """Return which of the unsure candidates lie under the density; those of the base are given their place in the tail."""
    _, _, heights = layers()
    low, high, own = heights[layer], heights[layer + 1], values[unsure]
    kept = low + _uniform(chances[: len(unsure)]) * (high - low) < np.exp(-own * own / 2)
    base = np.flatnonzero(layer == 0)
    if len(base):
        kept[base] = True
        far, rest = unsure[base], chances[len(unsure) :]
        need = 4 * len(base) + 8
        values[far] = np.copysign(_tail(len(base), rest if len(rest) >= need else _fresh(need, fill), fill), values[far])
    return kept


def _tail(n: int, words: Words, fill: Fill) -> Floats:
    """Return n values of the tail beyond the corner (Marsaglia 1964), from pairs of words as far as they reach."""
    r = float(layers()[0][1]) / _UNIT
    half = len(words) // 2
    logs = np.log(_uniform(words[: 2 * half]))
    x = -logs[:half] / r
    found = (r + x[-2 * logs[half:] > x * x])[:n]
    while len(found) < n:
        found = np.append(found, _tail(n - len(found), _fresh(4 * n + 8, fill), fill))
    return found


def _fresh(n: int, fill: Fill) -> Words:
    words = np.empty(n, np.int64)
    fill(words)
    return words


def _uniform(raw: Words) -> Floats:
    """Return values uniform over (0, 1], of 63 bits."""
    return np.asarray(((raw & _LOW_63).astype(np.float64) + 0.5) * 2.0**-63)


def scratch(name: str, n: int, dtype: Any) -> NDArray[Any]:
    """Return n entries of working memory of this thread: fresh pages would cost more than the values."""
    held = _KEPT.__dict__.get(name)
    if held is None or len(held) < n:
        held = _KEPT.__dict__[name] = np.empty(n, dtype)
    return cast(NDArray[Any], held[:n])
