"""Shadow inversion: the adversary holds the second part of a split model and never gets to ask the first."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.errors import DataError, ModelError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.core.taps import tap
from hauberk.core.target import evaluating
from hauberk.core.train import Schedule, cross_entropy, fit
from hauberk.privacy.inversion.feature_inversion import feature_inversion
from hauberk.privacy.model_inversion.descent import TAGS

WIDEST = 2048  # units up to which covariances are matched


@reconstruction(
    question="Do features hand over the input to one who cannot ask the part of the model that makes them?",
    paper="He et al. 2019, ACSAC (query-free attack)", tags=TAGS, preset="thorough", sees="split",
    access=Access.GRADIENT,
)
def shadow_inversion(
    module: nn.Module, features: Tensor, *, layer: str, auxiliary: tuple[Tensor, Tensor], epochs: int = 30, steps: int = 400,
    bounds: tuple[float, float] | None = None, seed: int = 0,
) -> Reconstruction:
    """Train a shadow of the first part so that the true second part answers rightly behind it, and invert the shadow.

    Right answers alone leave the shadow free to say the same in other words. So its features are also held to the means,
    deviations and covariances of the features seen, which the paper's attack does not use: with many of them it comes far nearer.

    Arguments:
        module: the model. Of the part before the layer only the layout is used: its weights are drawn anew.
        features: what the true layer put out for the inputs to win back, shape (n, ...); the more the better.
        layer: the last layer of the first part.
        auxiliary: inputs like the private ones, with labels, shapes (m, ...) and (m,).
        epochs: of the shadow's training.
        steps: gradient steps of the search through the shadow.
        bounds: lowest and highest input; None sets none.
        seed: of the shadow and the search.

    Returns:
        `x` of shape (n, ...), and `loss` of shape (n,): the relative squared distance of the features *in the shadow*.

    Raises:
        ModelError: for a layer that is not there, with nothing to learn before it, or behind weights that cannot be drawn anew.
        DataError: for no auxiliary data.
    """
    shadow = train_shadow(module, features, layer=layer, auxiliary=auxiliary, epochs=epochs, seed=seed)
    shape = tuple(auxiliary[0].shape[1:])
    return feature_inversion(shadow, features, layer=layer, shape=shape, steps=steps, bounds=bounds, seed=seed)


def train_shadow(
    module: nn.Module, features: Tensor, *, layer: str, auxiliary: tuple[Tensor, Tensor], epochs: int = 30, seed: int = 0
) -> nn.Module:
    """Return a copy whose part before the layer is drawn anew and trained on auxiliary data; the part behind it is frozen.

    Arguments, errors: as of `shadow_inversion`.
    """
    x, y = auxiliary
    if len(x) < 2 or len(x) != len(y):
        raise DataError(f"there are {len(x)} auxiliary inputs and {len(y)} labels", want="at least 2, each with its label")
    shadow = copy.deepcopy(module)
    first = before(shadow, x[:2], layer)
    if not first:
        raise ModelError(f"nothing before layer '{layer}' has weights", want="a split behind layers that were trained")
    with rng.isolated(rng.derive_seed(seed, "shadow")):
        behind = _draw_anew(shadow, first, x[:2], layer)
    for one in shadow.parameters():
        one.requires_grad_(any(one is held for held in first))
    plan = Schedule(epochs=epochs, batch_size=64, seed=rng.derive_seed(seed, "shadow"))
    law = Law.of(features.detach())
    with tap(shadow, [layer]) as seen:

        def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            for part in behind:  # the second part answers as it is served: its statistics are the adversary's to use, not to move
                part.eval()
            value = cross_entropy(model, x, y)
            return value if len(x) < 2 else value + law.distance(seen.activations[layer])

        fit(shadow, Split(x, y), loss=loss, optimizer=torch.optim.Adam(first, lr=2e-3), schedule=plan)
    return shadow.eval()


def _draw_anew(shadow: nn.Module, first: list[nn.Parameter], x: Tensor, layer: str) -> list[nn.Module]:
    """Draw the weights of the first part anew, forget the statistics it keeps, and return the modules of the second part."""
    for name, part in shadow.named_modules():
        reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
        if not any(one is held for one in part.parameters(recurse=False) for held in first):
            continue
        if not callable(reset):
            raise ModelError(
                f"the layer '{name or type(part).__name__}' ({type(part).__name__}) has weights and no reset_parameters",
                want="layers that can be initialised anew", fix="Give the module a reset_parameters()",
            )
        reset()
    # Which modules come before the layer is done is seen from a pass: normalisation without weights keeps statistics too.
    passed: list[bool] = []
    behind: list[nn.Module] = []

    def look(part: nn.Module, _: object) -> None:
        if passed:
            behind.append(part)
        elif isinstance(part, _NormBase) and not part.affine:
            part.reset_running_stats()

    handles = [dict(shadow.named_modules())[layer].register_forward_hook(lambda *_: passed.append(True))]
    handles += [part.register_forward_pre_hook(look) for part in shadow.modules() if not [*part.children()]]
    try:
        with torch.no_grad(), evaluating(shadow):
            shadow(x)
    finally:
        for handle in handles:
            handle.remove()
    return behind


@dataclasses.dataclass(frozen=True)
class Law:
    """The first two moments of features: means and deviations, and the covariances where they are few enough.

    Arguments:
        mean, deviation: by unit, shape (units,).
        covariance: shape (units, units); None for more than `WIDEST` units, or a single sample.
    """

    mean: Tensor
    deviation: Tensor
    covariance: Tensor | None

    @classmethod
    def of(cls, features: Tensor) -> Law:
        """Return the law of features, shape (n, ...)."""
        rows = features.flatten(1)
        mean = rows.mean(0)
        apart = rows - mean
        few = len(rows) > 1 and rows.shape[1] <= WIDEST
        return cls(mean, apart.square().mean(0).sqrt(), apart.T @ apart / len(rows) if few else None)

    def distance(self, features: Tensor) -> Tensor:
        """Return the squared distances to the moments of features, shape (n, ...), relative to the size of the stored ones."""
        rows = features.flatten(1)
        mean = rows.mean(0)
        tiny = torch.finfo(rows.dtype).tiny
        apart = rows - mean
        total = (mean - self.mean).square().mean() / self.mean.square().mean().clamp_min(tiny)
        if self.covariance is None:
            deviation = (apart.square().mean(0) + 1e-12).sqrt()
            size = self.deviation.square().mean()
            return total + (deviation - self.deviation).square().mean() / size if float(size) > 0 else total
        joint = apart.T @ apart / len(rows)
        return total + (joint - self.covariance).square().sum() / self.covariance.square().sum().clamp_min(tiny)


def before(module: nn.Module, x: Tensor, layer: str) -> list[nn.Parameter]:
    """Return the parameters that a layer's output depends on: those of the first part. Raises ModelError for an unknown layer."""
    parameters = list(module.parameters())
    frozen = [one for one in parameters if not one.requires_grad]
    try:
        for one in frozen:
            one.requires_grad_(True)
        with torch.enable_grad(), evaluating(module), tap(module, [layer]) as seen:
            module(x)
            output = seen.activations[layer]
            if not output.requires_grad:
                return []
            slopes = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    finally:
        for one in frozen:
            one.requires_grad_(False)
    return [one for one, slope in zip(parameters, slopes, strict=True) if slope is not None]
