"""What two sides of records have to be for a target, told before the work, or where it failed on them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from hauberk.core.errors import DataError

Function = TypeVar("Function", bound=Callable[..., Any])
RAW = (RuntimeError, ValueError, IndexError, TypeError)


def two_sided(function: Function) -> Function:
    """Return `(target, members, non_members, ...)` that raises DataError for records that do not fit each other or the target.

    Whether the target takes them is looked into where the function failed: no question is asked of a target for it before.
    """

    @functools.wraps(function)
    def checked(target: Any, members: Any, non_members: Any, *more: Any, **options: Any) -> Any:
        sides = [one[0] for one in (members, non_members)]
        shapes = [tuple(x.shape[1:]) for x in sides if len(x)]
        if len(set(shapes)) > 1:
            raise DataError(f"members have the shape {shapes[0]} and non-members {shapes[1]}", want="records of one shape")
        pool = getattr(options.get("references"), "x", None)
        if shapes and pool is not None and math.prod(pool.shape[1:]) != math.prod(shapes[0]):
            theirs = tuple(pool.shape[1:])
            raise DataError(f"records have the shape {shapes[0]}, those of the references {theirs}", want="records of one shape")
        try:
            return function(target, members, non_members, *more, **options)
        except torch.OutOfMemoryError:
            raise
        except RAW as error:
            for x in sides:
                _refuse(target, x, error)
            raise

    return cast(Function, checked)


def _refuse(target: Any, x: Tensor, error: Exception) -> None:
    """Raise DataError where the target does not answer to a record by itself."""
    from hauberk.core.target import as_target

    if not len(x):
        return
    try:
        with torch.no_grad():
            as_target(target).predictor(x[:2].detach())
    except torch.OutOfMemoryError:
        return
    except RAW as found:
        first = next(iter(str(found).splitlines()), type(found).__name__)
        told = f"the model does not take records of shape {tuple(x.shape[1:])} ({first[:300]})"
        raise DataError(told, want="records as the model was made for") from error
