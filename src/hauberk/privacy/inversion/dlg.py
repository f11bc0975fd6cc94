"""Inputs and labels searched for together until their gradient is the shared one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hauberk.core import progress
from hauberk.core.errors import UsageError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.core.rng import generator
from hauberk.privacy.inversion.client import ClientUpdate, as_updates
from hauberk.privacy.inversion.first_linear import TAGS
from hauberk.privacy.inversion.labels import hard, labels_of, width_of
from hauberk.privacy.inversion.matching import Matcher, squared
from hauberk.privacy.inversion.search import begin, box

SOLVED = 1e-6  # relative squared distance of gradients from which on another start would win nothing
STALLED = 20  # closures of one call to L-BFGS


@reconstruction(
    question="Which inputs and labels have the very gradient that was shared?", tags=TAGS, sees="update",
    paper="Zhu et al. 2019, arXiv:1906.08935; Zhao et al. 2020, arXiv:2001.02610",
)
def dlg(
    module: nn.Module, update: ClientUpdate | Sequence[ClientUpdate], *, steps: int = 400, restarts: int = 8,
    read_labels: bool = False, seed: int = 0,
) -> Reconstruction:
    """Search inputs and soft labels by the squared distance of gradients, with L-BFGS under the strong Wolfe conditions.

    In double precision whatever the model's, and from a new start where one stalls. Made for smooth networks (sigmoid, tanh) and
    few samples; where the second derivative vanishes almost everywhere (ReLU), see `inverting_gradients`.

    Arguments:
        module: the model that was sent to the clients; returns logits; never changed.
        update: what a client sent, or what several did, each to be inverted by itself.
        steps: of L-BFGS, for each start.
        restarts: most starts; no other is made once the gradients agree.
        read_labels: True reads the labels off the gradients first (iDLG); labels that are known are used either way.
        seed: of the starts.

    Returns:
        `x` of shape (clients * n, ...) and `y` of shape (clients * n,) of the best iterate over all starts; `loss` of shape
        (clients * n,), the relative squared distance of the gradients of the client that each input belongs to.

    Raises:
        DataError: for updates that are missing, not finite, or not of this model.
        UsageError: for steps or restarts below 1.
    """
    if steps < 1 or restarts < 1:
        raise UsageError(f"steps is {steps} and restarts is {restarts}", want="at least 1 each")
    updates = as_updates(update, module)
    twin = double(module)
    found = []
    for client, one in enumerate(updates):
        fixed = labels_of(twin, one) if read_labels or one.labels is not None else None
        matcher = Matcher(twin, [one], squared)
        best: tuple[float, Tensor, Tensor] | None = None
        with matcher.ready():
            for start in range(restarts):
                tried = _descend(matcher, one, fixed, steps, (seed, "dlg", client, start))
                best = tried if best is None or tried[0] < best[0] else best
                progress.update("DLG", client * restarts + start + 1, len(updates) * restarts)
                if best[0] <= SOLVED:
                    break
        assert best is not None
        found.append(best)
    like = next(module.parameters())
    loss = torch.tensor([one[0] for one in found], dtype=torch.float64).repeat_interleave(updates[0].n)
    return Reconstruction(torch.cat([one[1] for one in found]).to(like), torch.cat([one[2] for one in found]), loss)


def double(module: nn.Module) -> nn.Module:
    """Return a copy of the module in double precision, frozen."""
    import copy

    return copy.deepcopy(module).double().requires_grad_(False)


def _descend(
    matcher: Matcher, update: ClientUpdate, fixed: Tensor | None, steps: int, names: tuple[int, str, int, int]
) -> tuple[float, Tensor, Tensor]:
    seed, *others = names
    like = next(matcher.module.parameters())
    # In units of the input range: labels and inputs are searched for by the same steps.
    low, _, wide = box(update.bounds)
    low = low if math.isfinite(low) else 0.0
    x = (begin((update.n, *update.shape), like, update.bounds, seed, *others) - low) / wide
    logits: Tensor | None = None
    if fixed is None:
        drawn = torch.randn(update.n, width_of(matcher.module), generator=generator(seed, *others, "labels"), dtype=like.dtype)
        logits = drawn.to(like.device)
    free = [x] if logits is None else [x, logits]
    search = torch.optim.LBFGS(
        free, lr=1.0, max_iter=STALLED, history_size=100, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0
    )
    best: list[tuple[float, Tensor, Tensor]] = []

    def closure() -> float:
        inputs = low + wide * x.detach()
        value, at_x, at_logits = matcher(inputs, fixed if logits is None else logits)  # type: ignore[arg-type]
        now = float(value)
        # The squared distance is flat near the end, its logarithm is not: a line search goes on until rounding stops it.
        shown, rate = math.log(max(now, 1e-300)), 1 / max(now, 1e-300)
        x.grad = at_x * (wide * rate)
        if logits is not None and at_logits is not None:
            logits.grad = at_logits * rate
        if math.isfinite(now) and (not best or now < best[0][0]):
            labels = fixed if logits is None else logits
            assert labels is not None
            best[:] = [(now, inputs, hard(labels.detach().clone()))]
        return shown if math.isfinite(now) else math.inf

    for _ in range(math.ceil(steps / STALLED)):
        before = best[0][0] if best else math.inf
        search.step(closure)
        if not best or best[0][0] <= 1e-24 or (math.isfinite(before) and best[0][0] > 0.999 * before):
            break
    if not best:
        labels = hard(fixed) if fixed is not None else torch.zeros(update.n, dtype=torch.int64)
        return math.inf, low + wide * x.detach(), labels
    return best[0]
