"""What a client may do to a gradient before it leaves, one file each; `DEFENCES` names those that act on gradients alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from hauberk.privacy.inversion.defences.clip import clip as clip
from hauberk.privacy.inversion.defences.clip import norm_of as norm_of
from hauberk.privacy.inversion.defences.insert import insert_bottleneck as insert_bottleneck
from hauberk.privacy.inversion.defences.mid import information_loss as information_loss
from hauberk.privacy.inversion.defences.mid import mid as mid
from hauberk.privacy.inversion.defences.mixup import mixup as mixup
from hauberk.privacy.inversion.defences.noise import gaussian_noise as gaussian_noise
from hauberk.privacy.inversion.defences.noise import laplace_noise as laplace_noise
from hauberk.privacy.inversion.defences.precode import Bottleneck as Bottleneck
from hauberk.privacy.inversion.defences.precode import precode as precode
from hauberk.privacy.inversion.defences.private import private as private
from hauberk.privacy.inversion.defences.prune import prune as prune
from hauberk.privacy.inversion.defences.quantise import quantise as quantise
from hauberk.privacy.inversion.defences.soteria import soteria as soteria
from hauberk.privacy.inversion.defences.top_k import top_k as top_k

# name: (function of gradients and strength, what the strength is, a usual one); a greater strength changes the gradient more.
DEFENCES: dict[str, tuple[Callable[..., dict[str, Tensor]], str, float]] = {
    "gaussian-noise": (gaussian_noise, "standard deviation over the root mean square of the gradient", 1.0),
    "laplace-noise": (laplace_noise, "standard deviation over the root mean square of the gradient", 1.0),
    "prune": (prune, "share of each parameter's entries set to zero, the smallest first", 0.9),
    "top-k": (top_k, "share of all entries dropped, the smallest first", 0.99),
    "quantise": (quantise, "width of a step over the largest entry of the parameter", 0.5),
    "clip": (clip, "reciprocal of the largest L2 norm", 1.0),
    "private": (private, "noise multiplier, at a clipping norm of 1", 0.1),
}
