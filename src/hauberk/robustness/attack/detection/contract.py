"""The contract of attacks on detectors: what each promises is enforced here once, so that an attack is only its idea."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.attacks import refuse_bad_input, refuse_options, refuse_outside
from hauberk.core.errors import DataError, UsageError
from hauberk.core.kinds import method
from hauberk.core.threat import NORMS, Goal, Threat
from hauberk.robustness.attack.detection.boxes import Boxes, checked
from hauberk.robustness.attack.detection.target import DetectorTarget, ObjectDetector
from hauberk.robustness.attack.physical.contract import refuse_flat


class DetectionAttack(Protocol):
    """What `@detection_attack` returns."""

    __name__: str

    def __call__(
        self, target: DetectorTarget | ObjectDetector, x: Tensor, truth: Sequence[Boxes], threat: Threat, **options: Any
    ) -> Tensor:
        """Return attacked images for x, shape (n, channels, height, width)."""
        ...


def detection_attack(
    *, question: str, access: Access, paper: str, norms: Sequence[str] = NORMS, undivided: bool = False, preset: str = "thorough",
    tags: Sequence[str] = (),
) -> Callable[[Callable[..., Tensor]], DetectionAttack]:
    """Return a decorator that records an attack on detectors and keeps its contract.

    The function written is `(target, x, truth, threat, *, seed, ...) -> x_adv` for images each of which has a true box. What it
    becomes also takes a bare detector, refuses bad input at the door, grants the declared access and no more, leaves images
    without a true box and the global random state alone, and returns images strictly inside the ball, in x's dtype and on its
    device.

    Arguments:
        question: what running it answers.
        access: the least access it needs, and all that it gets.
        norms: those it supports.
        undivided: it makes one change for all images; the threat's mask, which it needs, is then one for all as well.
    """

    def record(function: Callable[..., Tensor]) -> DetectionAttack:
        called = function.__name__.replace("_", "-")
        parameters = inspect.signature(function).parameters.values()
        known = [one.name for one in parameters if one.kind is inspect.Parameter.KEYWORD_ONLY]

        @functools.wraps(function)
        def run(
            target: DetectorTarget | ObjectDetector, x: Tensor, truth: Sequence[Boxes], threat: Threat, **options: Any
        ) -> Tensor:
            whole = target if isinstance(target, DetectorTarget) else DetectorTarget(target)
            whole.need(access, called)
            refuse_options(called, options, known)
            refuse_bad_input(called, x, torch.zeros(x.shape[:1], dtype=torch.long), threat, norms, (Goal.UNTARGETED,))
            threat = threat.within(whole.bounds if whole.bounds is not None else (0.0, 1.0))
            refuse_flat(called, x)
            refuse_outside(x, threat)
            if threat.structure is not None:
                raise UsageError(f"{called} was given a threat with a structure", want="a norm, bounds and a mask alone")
            if undivided and (threat.mask is None or threat.mask.ndim == 4 or not bool(threat.mask.any())):
                fix = "Give a threat with one: Patch(mask)"
                raise UsageError(f"{called} was given no place", want="one mask for all images", fix=fix)
            if len(truth) != len(x):
                raise DataError(f"truth has {len(truth)} entries for {len(x)} images", want="Boxes for each image")
            known_truth = [checked(one, at) for at, one in enumerate(truth)]
            some = torch.tensor([at for at, one in enumerate(known_truth) if len(one)], dtype=torch.long, device=x.device)
            if not len(some):
                return x.detach().clone()
            quiet = rng.isolated(rng.derive_seed(int(options.get("seed", 0)), called), x.device)
            part, part_threat = x.detach()[some], threat.subset(some, x)
            with torch.inference_mode(False), torch.enable_grad(), quiet:
                exact = part.clone() if part.dtype in (torch.float32, torch.float64) else part.float()
                boxes = [known_truth[at] for at in some.tolist()]
                z = function(whole.seen_at(access), exact, boxes, part_threat, **options).detach()
            z = torch.where(z.isfinite(), z, exact)
            answer = x.detach().clone()
            answer[some] = part_threat.around(part).seal(z.to(x.dtype))
            return answer

        facts = {"norms": tuple(norms), "undivided": undivided}
        return method(
            "detection-attack", question=question, name=called, access=access, paper=paper, tags=tags, preset=preset, **facts
        )(run)

    return record


def known_reserve(reserve: float) -> None:
    """Raise UsageError for a share of true boxes outside [0, 1)."""
    if not 0 <= reserve < 1:
        raise UsageError(f"reserve is {reserve}", want="a share from 0 to below 1")
