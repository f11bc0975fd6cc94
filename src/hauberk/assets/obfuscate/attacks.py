"""What an adversary with the file, the architecture and a few samples, but no key, can do to locked weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from hauberk.assets.obfuscate.channels import Channels, Edit
from hauberk.assets.obfuscate.decoys import branch_names, set_branch
from hauberk.assets.obfuscate.fx_reader import read, traced
from hauberk.core.rng import generator
from hauberk.core.train import Schedule, fit

Samples = tuple[Tensor, Tensor]
Rank = Callable[[Tensor], Tensor]


def accuracy(module: nn.Module, samples: Samples, *, batch: int = 512) -> float:
    """Return the share of samples that a module gets right in evaluation mode; an answer that is not a number is wrong."""
    x, y = samples
    modes = {part: part.training for part in module.modules()}
    module.eval()
    with torch.no_grad():
        right = sum(
            int((torch.nan_to_num(module(some), nan=-torch.inf).argmax(1) == labels).sum())
            for some, labels in zip(x.split(batch), y.split(batch), strict=True)
        )
    for part, mode in modes.items():
        part.training = mode
    return right / max(len(y), 1)


def renormalise(module: nn.Module, samples: Samples, *, assign: bool = False) -> nn.Module:
    """Return the module after the renormalisation attack: scales are undone, running statistics measured again.

    Wrong scales alone are no protection: a layer scaled by any positive number, and a row too, is a layer of the usual size again
    once it is divided by its norm. Four ways are tried, and the one that does best on the adversary's own samples is kept: the
    tensors as they are, each tensor at the size of a fresh one, each row, rows and columns in turn (Sinkhorn). Norms get the mean
    and variance that the samples have there.

    Arguments:
        module: with locked weights; not changed.
        samples: what the adversary has, x of shape (n, ...) and y of shape (n,).
        assign: give the answers to the classes that they fit best, too: which output stands for which class is then learnt from
            labels, as any random features would let it be; compare with the same on fresh weights.
    """
    tried = [settled(_rescaled(module, way), samples, assign=assign) for way in (_alone, _whole, _rows, _sinkhorn)]
    return max(tried, key=lambda one: accuracy(one, samples))


def rank_matching(module: nn.Module, samples: Samples, *, assign: bool = False) -> nn.Module:
    """Return the module after the rank-matching attack: units are put back in order by what training left in their weights.

    Gradient flow keeps the norms of what enters and what leaves a ReLU unit in balance (Du et al. 2018, arXiv:1806.00900), and
    weight decay makes them equal: where only the order is secret, the unit of the n-th largest row belongs to the n-th largest
    column. Also matched are kurtosis, and both after rows and columns were brought to one size, which hides norms. Each way is
    followed by `renormalise`, and the best on the adversary's own samples is kept.

    Arguments:
        module: with locked weights; its architecture is known. Not changed.
        samples: what the adversary has.
        assign: as for `renormalise`.

    Raises:
        ModelError: for a module that cannot be traced.
    """
    channels = read(traced(module, samples[0][:2]))
    tried = []
    for prepare in (_alone, _sinkhorn):
        for rank in (_norm, _kurtosis):
            matched = _rescaled(module, prepare)
            _match(matched, channels, rank)
            tried.append(renormalise(matched, samples, assign=assign))
    return max(tried, key=lambda one: accuracy(one, samples))


def few_shot(module: nn.Module, samples: Samples, *, steps: int = 100, lr: float = 1e-3, seed: int = 0) -> nn.Module:
    """Return the module fine-tuned on the adversary's samples, from the weights as they are.

    Arguments:
        module: with locked weights, or fresh ones, the baseline; not changed.
        samples: what the adversary has.
        steps: of AdamW.
        lr: its rate.
        seed: of the batches.
    """
    from hauberk.core.data import Split

    made = copy.deepcopy(module)
    size = min(64, len(samples[0]))
    epochs = max(1, round(steps * size / len(samples[0])))
    fit(
        made, Split(*samples), schedule=Schedule(epochs=epochs, batch_size=size, seed=seed),
        optimizer=torch.optim.AdamW([one for one in made.parameters() if one.requires_grad], lr),
    )
    return made


def fresh(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy with weights drawn anew, as its layers do it; where they cannot, normally, as wide as they were."""
    from hauberk.core.rng import isolated

    made = copy.deepcopy(module)
    before = {name: value.detach().clone() for name, value in made.named_parameters()}
    with isolated(seed), torch.no_grad():
        for part in made.modules():
            reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
            if callable(reset):
                reset()
        for name, value in made.named_parameters():
            # What no layer drew (positions, tokens, parametrised weights) holds what was learnt: it may not stay.
            if value.is_floating_point() and value.numel() > 1 and torch.equal(value, before[name]) and bool(value.std() > 0):
                value.copy_(torch.randn(value.shape, dtype=torch.float64) * value.double().std() + value.double().mean())
    return made


@torch.no_grad()
def search_branches(module: nn.Module, samples: Samples, *, sweeps: int = 2) -> tuple[nn.Module, int]:
    """Return a module with decoys after a greedy search for its true branches, and how many evaluations that took.

    Tensor by tensor the branch with the least loss on the adversary's samples is kept, the others held.
    """
    made, spent = copy.deepcopy(module).eval(), 0
    x, y = samples
    for _ in range(sweeps):
        for name, many in sorted(branch_names(made).items(), key=lambda one: one[0]):
            losses = []
            for index in range(many):
                set_branch(made, name, index)
                losses.append(float(torch.nan_to_num(nn.functional.cross_entropy(made(x), y), nan=torch.inf)))
                spent += 1
            set_branch(made, name, losses.index(min(losses)))
    return made, spent


@torch.no_grad()
def settled(module: nn.Module, samples: Samples, *, assign: bool) -> nn.Module:
    """Return the module with its norms' statistics taken on the samples and, if asked, outputs given to the classes they fit."""
    x, y = samples
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.track_running_stats]
    if norms:
        for one in norms:
            one.reset_running_stats()
            one.momentum = None  # a plain mean over the batches
            one.train()
        for some in x.split(256):
            if len(some) > 1:
                module(some)
    module.eval()
    if not assign:
        return module
    answers = torch.nan_to_num(module(x)).double()
    classes = answers.shape[1]
    counts = torch.zeros(classes, classes, dtype=torch.float64)
    counts.index_put_((answers.argmax(1), y), torch.ones(len(y), dtype=torch.float64), accumulate=True)
    # Which output stands for which class is secret too, and a few labels tell it.
    rows, columns = linear_sum_assignment(-counts.numpy())
    order = torch.empty(classes, dtype=torch.long)
    order[torch.from_numpy(columns)] = torch.from_numpy(rows)
    return nn.Sequential(module, _Reordered(order)) if not torch.equal(order, torch.arange(classes)) else module


class _Reordered(nn.Module):
    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)

    def forward(self, answers: Tensor) -> Tensor:
        order: Tensor = self.get_buffer("order")
        return answers[:, order]


@torch.no_grad()
def _rescaled(module: nn.Module, way: Callable[[Tensor], Tensor]) -> nn.Module:
    made = copy.deepcopy(module)
    for part in made.modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim > 1:
            new = way(weight.detach().double().flatten(1))
            bias = getattr(part, "bias", None)
            if isinstance(bias, nn.Parameter) and len(bias) == len(weight):
                # A bias scales with its layer: by one number, since its own order is not that of the rows.
                bias.mul_(new.norm().div(weight.detach().double().norm().clamp(min=1e-30)).to(bias))
            weight.copy_(new.view(weight.shape))
    return made


def _alone(rows: Tensor) -> Tensor:
    return rows


def _whole(rows: Tensor) -> Tensor:
    return rows * (2.0 * len(rows)) ** 0.5 / rows.norm().clamp(min=1e-30)


def _rows(rows: Tensor) -> Tensor:
    return rows * 2.0**0.5 / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)


def _sinkhorn(rows: Tensor) -> Tensor:
    for _ in range(10):
        rows = rows / rows.norm(dim=0, keepdim=True).clamp(min=1e-30)
        rows = _rows(rows)
    return rows


def _norm(rows: Tensor) -> Tensor:
    return rows.norm(dim=1)


def _kurtosis(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(1, keepdim=True)
    return centred.pow(4).mean(1) / centred.pow(2).mean(1).pow(2).clamp(min=1e-30)


@torch.no_grad()
def _match(module: nn.Module, channels: Channels, rank: Rank) -> None:
    """Reorder in place what follows each group of units as its first tensor ranks them."""
    state = dict(module.state_dict())
    for edits in _groups(channels):
        order = None
        for edit in sorted(edits, key=lambda one: state[one.tensor].ndim == 1):
            value = state[edit.tensor]
            n = value.shape[edit.axis] // edit.repeat
            rows = value.double().movedim(edit.axis, 0).reshape(n, -1)
            if order is None:
                rows = _with_bias(rows, state, edits, edit)
            ranked = (rank(rows) if rows.shape[1] > 3 else rows.abs().sum(1)).argsort()
            if order is None:
                order = ranked
                continue
            place = torch.empty_like(order)
            place[order] = ranked  # the unit of the n-th rank gets the entry of the n-th rank
            moved = value.movedim(edit.axis, 0).reshape(n, edit.repeat, -1)[place]
            rest = [size for axis, size in enumerate(value.shape) if axis != edit.axis]
            value.copy_(moved.reshape(value.shape[edit.axis], *rest).movedim(0, edit.axis))


def _with_bias(rows: Tensor, state: dict[str, Tensor], edits: list[Edit], edit: Edit) -> Tensor:
    """Return the rows with their biases: it is both together that balance what leaves the unit."""
    name = edit.tensor.rpartition(".")[0] + ".bias"
    if edit.axis != 0 or all(one.tensor != name for one in edits):
        return rows
    return torch.cat([rows, state[name].double()[:, None]], 1)


def _groups(channels: Channels) -> Iterator[list[Edit]]:
    found: dict[int, list[Edit]] = {}
    for edit in channels.edits:
        if channels.moves(edit.units):
            found.setdefault(channels.root(edit.units), []).append(edit)
    yield from (edits for edits in found.values() if len(edits) > 1)


def share(samples: Samples, part: float, seed: int) -> Samples:
    """Return a random share of the samples, ten at least: what an adversary could have."""
    order = torch.randperm(len(samples[0]), generator=generator(seed, "few shot"))[: max(10, round(part * len(samples[0])))]
    return samples[0][order], samples[1][order]
