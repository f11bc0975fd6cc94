"""Per-layer clipping: each group of parameters has its own clip. McMahan et al. 2018, arXiv:1812.06210."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from hauberk.core.errors import UsageError, nearest
from hauberk.privacy.dp.clipping.base import LEAST, Clipping, Norms, shrunk, whole


class PerLayer(Clipping):
    """Clip the gradient of each layer by itself; the whole then has norm at most √(ΣCᵢ²).

    Arguments:
        clip: a number C gives each of the k layers C/√k, so that the whole stays within C; a mapping gives the clip of each
            layer or parameter by name or the start of its name (`{"features": 0.5, "head": 1.0}`), and must cover them all.
    """

    def __init__(self, clip: float | Mapping[str, float] = 1.0) -> None:
        self.given = dict(clip) if isinstance(clip, Mapping) else None
        values = list(self.given.values()) if self.given is not None else [float(clip)]  # type: ignore[arg-type]
        if not values or not all(LEAST <= value < math.inf for value in values):
            raise UsageError(f"the clips are {values}", want=f"finite norms above 0, at least {LEAST:g}")
        super().__init__(math.sqrt(sum(value**2 for value in values)))
        self.groups: list[tuple[list[Parameter], float]] = []

    def bind(self, parameters: Mapping[str, Parameter], batch_size: float) -> None:
        """Sort the parameters into groups."""
        names = list(self.given) if self.given is not None else sorted({name.rpartition(".")[0] for name in parameters})
        members: dict[str, list[Parameter]] = {name: [] for name in names}
        for name, parameter in parameters.items():
            owners = [one for one in names if one in ("", name) or name.startswith(f"{one}.")]
            if not owners:
                raise UsageError(f"the parameter '{name}' has no clip", want="a clip for every trained parameter",
                                 fix=nearest(name, names))
            members[max(owners, key=len)].append(parameter)
        if empty := [name for name, group in members.items() if not group]:
            raise UsageError(f"no trained parameter belongs to {empty}", want="names of layers",
                             fix=nearest(empty[0], list(parameters)))
        share = self.clip / math.sqrt(len(names))
        clips = self.given or dict.fromkeys(names, share)
        self.groups = [(members[name], clips[name]) for name in names]

    def weights(self, norms: Norms) -> dict[Parameter, Tensor]:
        """Return min(1, Cᵢ/‖gᵢ‖) for the parameters of each layer, shape (batch,) each."""
        good = whole(norms, self.norm).isfinite()
        found: dict[Parameter, Tensor] = {}
        for members, clip in self.groups:
            factor = shrunk(whole({one: norms[one] for one in members}, self.norm), clip)
            found.update(dict.fromkeys(members, torch.where(good, factor, 0.0)))
        return found

    def describe(self) -> str:
        """Return the strategy in words for a privacy statement."""
        return f"clipping of {len(self.groups)} layers, L2 norm {self.bound:.6g} over all"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"clip": self.clip, "clips": [clip for _, clip in self.groups]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuse a run that was clipped in another way; nothing adapts."""
        if state["clips"] != [clip for _, clip in self.groups]:
            raise ValueError(f"the run was clipped at {state['clips']}")
