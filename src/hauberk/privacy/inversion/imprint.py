"""A module that a dishonest server puts before the model, whose gradient holds the samples of a batch one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from scipy.stats import norm
from torch import Tensor, nn

from hauberk.core.errors import ModelError, UsageError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.first_linear import TAGS, read


class Imprint(nn.Module):
    """x + 0 * relu(M x - b) written so that it still sends gradients: the model behind answers as if it were not there, nearly.

    Each of the `bins` rows of M measures the same quantity, the mean of the input; the biases are its quantiles, so that a sample
    with a value between the k-th and the next sets off the first k rows. The difference of two neighbouring rows' gradients is of
    the samples in one bin alone (Fowl et al. 2022, arXiv:2110.13057).

    Arguments:
        shape: of one sample.
        bins: rows; the more, the fewer samples share one.
        mean, deviation: of the measured quantity over the clients' samples, as the server guesses them.
        strength: what a set-off row adds to every pixel; small enough to pass unseen, large enough to survive rounding.
    """

    def __init__(
        self, shape: tuple[int, ...], bins: int = 128, *, mean: float = 0.13, deviation: float = 0.05, strength: float = 1e-3
    ) -> None:
        super().__init__()
        if bins < 1 or deviation <= 0 or strength <= 0:
            raise UsageError(f"bins is {bins}, deviation {deviation}, strength {strength}", want="at least 1, and above 0")
        self.shape, size = tuple(shape), math.prod(shape)
        self.measure = nn.Linear(size, bins)
        self.spread = nn.Linear(bins, size, bias=False)
        edges = mean + deviation * norm.ppf([(k + 0.5) / bins for k in range(bins)])
        with torch.no_grad():
            self.measure.weight.fill_(1 / size)
            self.measure.bias.copy_(torch.as_tensor(-edges))
            self.spread.weight.fill_(strength / bins)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, (n, *shape), with next to nothing added."""
        return x + self.spread(self.measure(x.flatten(1)).relu()).reshape(x.shape)


@reconstruction(
    question="What would a server that may change the model get out of one gradient?", tags=TAGS, sees="imprint",
    paper="Fowl et al. 2022, arXiv:2110.13057",
)
def imprint(module: nn.Module, gradients: Mapping[str, Tensor], *, tolerance: float = 1e-3) -> Reconstruction:
    """Return the samples that were alone in a bin of the model's `Imprint` module: exactly, whatever the batch.

    Arguments:
        module: a model that holds an `Imprint` module, which sees the samples themselves.
        gradients: by parameter name, of the mean loss of a batch.
        tolerance: a bin counts as empty where its gradient is below this share of the largest.

    Returns:
        `x` of shape (m, *shape), one for each bin that holds samples, in the order of their means. A bin of several holds a
        weighted mean of them, which `loss` tells, shape (m,): how far the mean of the reconstruction is from its bin, in widths
        of the bin, 0 inside it. Inside its bin is a necessary sign of a single sample, not proof.

    Raises:
        ModelError: when the model holds no such module.
        DataError: when its gradients are missing, of another shape, or not finite.
    """
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, Imprint)]
    if not found:
        raise ModelError("the model holds no Imprint module", want="nn.Sequential(Imprint(shape), model)")
    name, part = found[0]
    place = f"{name}.measure" if name else "measure"
    weight = read(gradients, f"{place}.weight", part.measure.weight)
    bias = read(gradients, f"{place}.bias", part.measure.bias)
    # Row k sums over all samples above its edge; what a bin holds is the difference to the next row.
    rows = weight - torch.cat([weight[1:], weight.new_zeros(1, weight.shape[1])])
    shares = bias - torch.cat([bias[1:], bias.new_zeros(1)])
    full = shares.abs() > tolerance * shares.abs().max()
    x = rows[full] / shares[full, None]
    edges = -part.measure.bias.detach().double()
    above = torch.cat([edges[1:], edges.new_full((1,), math.inf)])
    low, high, middle = edges[full], above[full], x.mean(1)
    # The last bin has no end: it counts as wide as the one before it.
    wide = torch.where(high.isinf(), edges.diff()[-1] if len(edges) > 1 else edges.new_ones(()), high - low)
    outside = torch.maximum(low - middle, middle - high).clamp_min(0) / wide
    return Reconstruction(x.reshape(-1, *part.shape), loss=outside)
