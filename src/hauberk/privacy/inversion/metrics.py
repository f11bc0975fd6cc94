"""How close reconstructions come to the samples behind them."""

from __future__ import annotations

import dataclasses
import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import image_quality
from hauberk.core.errors import DataError, UsageError
from hauberk.core.finding import Interval
from hauberk.core.kinds import Reconstruction
from hauberk.core.rng import isolated
from hauberk.core.stats import wilson
from hauberk.privacy.inversion.client import serving

CEILING = 200.0  # dB: of a reconstruction without any error
WINDOW = 7


@dataclasses.dataclass(frozen=True, eq=False)
class Closeness:
    """Each sample beside its reconstruction, all of shape (n,).

    Arguments:
        mse: mean squared error of the inputs, in their own units.
        psnr: in dB, of the range of the inputs; at most 200.
        ssim: structural similarity, 1 for equal images; NaN for inputs that are no images.
        fmse: mean squared error of the logits.
        loss: cross-entropy of the sample under the model; NaN where no labels were given.
        gradient_norm: L2 norm of the gradient of that loss at the weights; NaN where no labels were given.
        order: which reconstruction stands beside each sample.
    """

    mse: Tensor
    psnr: Tensor
    ssim: Tensor
    fmse: Tensor
    loss: Tensor
    gradient_norm: Tensor
    order: Tensor

    def success(self, psnr: float = 30.0) -> tuple[float, int, Interval]:
        """Return the share of samples at or above that PSNR in dB, their number, and Wilson's interval of the share."""
        hits, n = int((self.psnr >= psnr).sum()), len(self.psnr)
        return hits / max(n, 1), n, wilson(hits, n)


def closeness(
    module: nn.Module, x: Tensor, found: Reconstruction | Tensor, *, y: Tensor | None = None,
    bounds: tuple[float, float] = (0.0, 1.0), group: int = 1,
) -> Closeness:
    """Return how close reconstructions are to the samples, each matched to the one nearest overall.

    Arguments:
        module: the model, for the logits and the gradient norms; in evaluation mode, never changed.
        x: samples, shape (n, ...).
        found: reconstructions, as many.
        y: labels, shape (n,), for the loss and gradient norm of each sample.
        bounds: lowest and highest input.
        group: samples of one client, among which the order of the reconstructions means nothing; they follow one another.

    Raises:
        DataError: for another number or shape of reconstructions.
        UsageError: for a group that does not divide n.
    """
    z = found.x if isinstance(found, Reconstruction) else found
    x, z = x.detach(), z.detach()
    if z.numel() != x.numel() or len(z) != len(x):
        raise DataError(f"there are reconstructions {tuple(z.shape)} of samples {tuple(x.shape)}", want="as many, of one shape")
    if group < 1 or len(x) % group:
        raise UsageError(f"group is {group} for {len(x)} samples", want="a number that divides it")
    z = torch.nan_to_num(z.reshape(x.shape).to(x))
    order = torch.cat([first + match(x[first : first + group], z[first : first + group]) for first in range(0, len(x), group)])
    z = z[order]
    error = (z.double() - x.double()).square().flatten(1).mean(1)
    low, width = float(bounds[0]), float(bounds[1]) - float(bounds[0])
    parameters = [one for one in module.parameters() if one.is_floating_point()]
    with serving(module, training=False):
        # A model that draws at random draws alike for both, and leaves the global state as it was.
        with torch.no_grad():
            with isolated(0, x.device):
                own = module(x).double()
            with isolated(0, x.device):
                told = (module(z).double() - own).square().flatten(1).mean(1)
        loss, norm = (torch.full((len(x),), math.nan, dtype=torch.float64) for _ in range(2))
        for k in range(len(x) if y is not None else 0):
            assert y is not None
            loss[k], norm[k] = _loss_and_norm(module, parameters, x[k : k + 1], y[k : k + 1])
    return Closeness(error, psnr(error, width), ssim(x - low, z - low, width), told, loss, norm, order)


def psnr(mse: Tensor, width: float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of errors on a range of that width; at most 200, where there is no error."""
    return (10 * (width * width / mse.double().clamp_min(1e-300)).log10()).clamp_max(CEILING)


def match(x: Tensor, z: Tensor) -> Tensor:
    """Return which z belongs to each x, shape (n,): the assignment of the least squared error in all (Hungarian method)."""
    apart = torch.cdist(x.flatten(1).double(), z.flatten(1).double()).square().nan_to_num(nan=1e30, posinf=1e30)
    return torch.as_tensor(linear_sum_assignment(apart.cpu().numpy())[1], device=x.device)


def ssim(x: Tensor, z: Tensor, width: float = 1.0) -> Tensor:
    """Return the mean structural similarity of images (n, channels, height, width), shape (n,); NaN for what is no image.

    Over all places of a window of 7 by 7, or of the smaller side where that is shorter, made odd; variances with n - 1; channel
    by channel (Wang et al. 2004, IEEE TIP 13(4)).

    Arguments:
        x, z: images to compare.
        width: of their range, which begins at 0.
    """
    if x.ndim != 4 or min(x.shape[-2:]) < 3:
        return torch.full((len(x),), math.nan, dtype=torch.float64)
    return image_quality.ssim(x, z, bounds=(0.0, width), window=WINDOW)


def _loss_and_norm(module: nn.Module, parameters: list[nn.Parameter], x: Tensor, y: Tensor) -> tuple[float, float]:
    frozen = [one for one in parameters if not one.requires_grad]
    for one in frozen:
        one.requires_grad_(True)
    try:
        with torch.enable_grad(), isolated(0, x.device):
            loss = functional.cross_entropy(module(x), y)
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for one in frozen:
            one.requires_grad_(False)
    return float(loss.detach()), math.sqrt(sum(float(one.double().square().sum()) for one in slopes if one is not None))
