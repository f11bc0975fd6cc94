"""Even: random operations that draw the same value for every example, so that passes over different examples can be compared."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_DRAWS = ("rand", "normal", "uniform", "bernoulli", "exponential", "multinomial", "poisson", "cauchy", "log_normal", "geometric")


class Even(TorchDispatchMode):
    """Inside, what is drawn at random is one value throughout, a permutation moves everything by one place, nothing is dropped.

    Generators that are passed stay as they are.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or what stands for it."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::").removeprefix("_")
        if kwargs.get("generator") is not None:
            kwargs["generator"] = None
        if name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if not name.startswith(_DRAWS):
            names = [one.name for one in func._schema.arguments]
            args = [_kept(name, one) for name, one in zip(names, args, strict=False)]
            return func(*args, **{name: _kept(name, one) for name, one in kwargs.items()})
        args = tuple(None if isinstance(one, torch.Generator) else one for one in args)
        out = func(*args, **kwargs)
        if name == "randperm":
            return out.copy_(torch.arange(len(out), device=out.device).roll(1))
        if name == "randint" and len(args) > 1 and isinstance(args[1], int):
            return out.fill_(args[0])
        return out.fill_(0.5 if out.is_floating_point() else 1 if out.dtype == torch.bool else 0)


def _kept(name: str, value: Any) -> Any:
    return 0.0 if name.startswith("dropout") and isinstance(value, float) else value
