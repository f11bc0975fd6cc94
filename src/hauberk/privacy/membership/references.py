"""Reference models: trained as the target was, on known halves of the records, so that it is known what membership does."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.overlap import fingerprints
from hauberk.core.parallel import run_tasks
from hauberk.core.stacked import fit_stacked, logits_of
from hauberk.core.target import Target
from hauberk.core.train import Schedule
from hauberk.privacy.membership.estimators import Fitting, fit_estimator, fresh_estimator
from hauberk.privacy.membership.signals import Records, foreign, paired

USUAL = Schedule(epochs=40, batch_size=64)
Signal = Callable[[Tensor, Tensor], Tensor]  # of logits (n, classes) and labels (n,)
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Sequence[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class References:
    """k models, the records they were trained from, which of these each saw, and what each answers to all of them.

    Arguments:
        models: the k models.
        x, y: the pool of records, shapes (n, ...) and (n,).
        inside: whether model i was trained on record j, shape (k, n), bool.
        logits: what model i answers to record j, shape (k, n, classes).
    """

    models: Sequence[Target]
    x: Tensor
    y: Tensor
    inside: Tensor
    logits: Tensor
    _known: dict[Signal, Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.models)

    @functools.cached_property
    def _order(self) -> tuple[Tensor, Tensor]:
        """The records of the pool by what they hold: keys that rise, and where each stands."""
        known, places = _keys(self.x, self.y).sort()
        return known, places

    def take(self, chosen: Sequence[int]) -> References:
        """Return the references at those positions alone, with the same pool."""
        rows = torch.tensor(list(chosen), dtype=torch.long)
        models = [self.models[k] for k in chosen]
        made = References(models, self.x, self.y, self.inside[rows], self.logits[rows])
        made._known.update({signal: values[rows] for signal, values in self._known.items()})
        return made

    def on(self, records: Records, signal: Signal) -> tuple[Tensor, Tensor]:
        """Return a signal of what the models answer to the records, (k, n), float64, and which they were trained on, (k, n).

        Records are found in the pool by what they hold, in whatever order; those that are not there were trained on by none.

        Raises:
            DataError: for a label that the models have no answer for.
        """
        x, y = records[0], records[1].cpu().long()
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.logits.shape[2]:
            raise DataError(
                f"labels span {int(y.min())} to {int(y.max())}", want=f"the references' classes, 0 to {self.logits.shape[2] - 1}"
            )
        places, found, inside = self._looked_up(x, y)
        if signal not in self._known:
            self._known[signal] = torch.stack([signal(one.double(), self.y.long()) for one in self.logits])
        values = self._known[signal][:, places]
        if not bool(found.all()):
            new = (~found).nonzero()[:, 0]
            asked = x[new.to(x.device)]
            values[:, new] = torch.stack([signal(one.logits(asked).double().cpu(), y[new]) for one in self.models])
        return values, inside

    def holding(self, records: Records) -> Tensor:
        """Return whether each model was trained on each of the records, shape (k, n), bool; nothing is asked of the models."""
        return self._looked_up(records[0], records[1].cpu().long())[2]

    def _looked_up(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a place of each record in the pool, whether it is there, (n,) both, and which models saw it, (k, n)."""
        known, places = self._order
        asked = _keys(x, y)
        first, last = torch.searchsorted(known, asked), torch.searchsorted(known, asked, right=True)
        # Copies of one record stand side by side: a model saw the record when it was trained on any of them.
        sums = torch.cat([torch.zeros(len(self), 1, dtype=torch.long), self.inside[:, places].long().cumsum(1)], 1)
        return places[first.clamp(max=len(known) - 1)], last > first, sums[:, last] > sums[:, first]


def halves(n: int, count: int, *, seed: int) -> Tensor:
    """Return which of n records each of `count` models is trained on, shape (count, n), bool: pairs of complementary halves.

    Raises:
        UsageError: for a count that is odd or below 2.
    """
    if count < 2 or count % 2:
        raise UsageError(f"{count} reference models are asked for", want="an even number, 2 or more: they come in pairs")
    inside = torch.zeros(count, n, dtype=torch.bool)
    for pair in range(count // 2):
        order = torch.randperm(n, generator=rng.generator(seed, "halves", pair))
        inside[2 * pair, order[: n // 2]] = True
        inside[2 * pair + 1, order[n // 2 :]] = True
    return inside


def train_references(
    make: object, records: Records, *, count: int = 16, schedule: Schedule = USUAL, lr: float = 1e-3,
    workers: int = 1, spread: Spread | None = None,
) -> References:
    """Train reference models on complementary random halves of a pool of records.

    Torch modules of one architecture are trained side by side in one pass, with Adam, `schedule` and `lr`. Estimators of
    scikit-learn are fitted one by one, in processes when `workers` > 1.

    Arguments:
        make: a module, whose architecture is taken and initialised anew; an estimator, which is cloned; or a function of a seed
            that returns either, untrained.
        records: the pool, x of shape (n, ...) and y of shape (n,): what will be judged, and more of the kind where there is.
        count: of models, even.
        schedule: epochs, batch size and seed: those of the target's training.
        lr: of Adam.
        workers: processes for estimators.
        spread: runs `spread(function, items)` elsewhere, as `ray.util.multiprocessing.Pool().map` does; for estimators.

    Raises:
        ModelError: for a module whose weights cannot be drawn anew.
        UsageError: for an odd count, or something that cannot be trained.
        DataError: for fewer than 4 records, records that the module does not take, or labels that are not classes of it.
    """
    x, y = paired((records[0].detach().cpu(), records[1].cpu()))
    if len(x) < 4:
        raise DataError(f"the pool holds {len(x)} records", want="4 or more: each model is trained on half of them")
    if int(y.min()) < 0:
        raise foreign(y)
    inside = halves_of(x, y, count, schedule.seed)
    index = [one.nonzero()[:, 0] for one in inside]
    seeds = [rng.derive_seed(schedule.seed, "reference", k) % 2**32 for k in range(count)]
    made = [_make(make, seed) for seed in seeds]
    if all(isinstance(one, nn.Module) for one in made):
        held = next(iter(made[0].parameters()), x)
        placed = x.to(held.device, held.dtype)
        _refuse_misfits(made[0], placed, y)
        fit_stacked(made, placed, y.to(held.device).long(), index, schedule=schedule, lr=lr)
        models = [Target(one) for one in made]
    elif not any(isinstance(one, nn.Module) for one in made):
        width = int(y.max()) + 1
        items = [Fitting(one, x[rows], y[rows], width) for one, rows in zip(made, index, strict=True)]
        models = [Target(one, outputs="probabilities") for one in _fitted(items, workers, spread)]
    else:
        raise UsageError("the factory returns modules and estimators in turn", want="one kind")
    logits = torch.stack([one.logits(x).float() for one in models])
    return References(models, x, y, inside, logits)


def halves_of(x: Tensor, y: Tensor, count: int, seed: int) -> Tensor:
    """Return the halves of a pool in which copies of one record stay together: else no model is trained without it."""
    kinds = torch.unique(_keys(x, y), return_inverse=True)[1]
    distinct = int(kinds.max()) + 1
    if distinct == len(x):
        return halves(len(x), count, seed=seed)
    if distinct < 2:
        raise DataError(f"the pool holds {len(x)} copies of one record", want="records that differ")
    return halves(distinct, count, seed=seed)[:, kinds]


def _refuse_misfits(module: nn.Module, x: Tensor, y: Tensor) -> None:
    try:
        told = logits_of([module], x[:2]).shape[2]
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"the model does not take records of shape {tuple(x.shape[1:])} ({str(error).splitlines()[0]})",
            want="records as the model was made for",
        ) from error
    if int(y.max()) >= told:
        raise foreign(y, told)


def own_references(sides: Sequence[Records], *, count: int = 4) -> References:
    """Return small perceptrons trained on halves of all records: what an adversary has who knows nothing of the model.

    The order in which the records came does not enter.
    """
    x, y = torch.cat([one[0] for one in sides]).detach().cpu().float(), torch.cat([one[1] for one in sides]).cpu()
    order = _keys(x, y).argsort(stable=True)
    x, y = x[order], y[order].long()
    width, features = int(y.max()) + 1 if len(y) else 2, x[0].numel() if len(x) else 1
    steps = max(1, -(-len(x) // 128))

    def make(seed: int) -> nn.Module:
        with rng.isolated(seed):
            return nn.Sequential(nn.Flatten(), nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, max(2, width)))

    schedule = Schedule(epochs=max(20, -(-150 // steps)), batch_size=64)
    return train_references(make, (x, y), count=count, schedule=schedule, lr=5e-3)


def redrawn(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a module with its weights drawn anew, as its layers draw them when they are made.

    Raises:
        ModelError: where a layer holds weights that it cannot draw.
    """
    made = copy.deepcopy(module)
    for name, layer in made.named_modules():
        held = [*layer.parameters(recurse=False)]
        drawn = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
        if drawn is None and held:
            raise ModelError(
                f"the layer '{name or type(layer).__name__}' ({type(layer).__name__}) has weights and no reset_parameters",
                want="layers that can be initialised anew", fix="Give a function of a seed that returns a fresh model",
            )
    with rng.isolated(seed):
        for layer in made.modules():
            drawn = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(drawn):
                drawn()
    for parameter in made.parameters():
        parameter.grad = None
    return made


def _make(make: object, seed: int) -> Any:
    if isinstance(make, nn.Module):
        return redrawn(make, seed)
    if callable(getattr(make, "fit", None)) and hasattr(make, "get_params"):
        return fresh_estimator(make, seed)
    if callable(make) and not isinstance(make, type):
        made = make(seed)
        if isinstance(made, nn.Module) or callable(getattr(made, "fit", None)):
            return made
        raise UsageError(f"the factory returned a {type(made).__name__}", want="a torch module or an estimator, untrained")
    raise UsageError(
        f"reference models cannot be made from a {type(make).__name__}",
        want="a torch module, an estimator of scikit-learn, or a function of a seed that returns one",
    )


def _fitted(items: list[Fitting], workers: int, spread: Spread | None) -> list[Any]:
    if spread is not None:
        return list(spread(fit_estimator, items))
    made: dict[int, Any] = {}
    for outcome in run_tasks(fit_estimator, items, workers=workers):
        if outcome.error is not None:
            raise ModelError(f"reference model {outcome.index} could not be fitted ({outcome.error})") from outcome.error
        made[outcome.index] = outcome.value
    return [made[index] for index in range(len(items))]


def _keys(x: Tensor, y: Tensor) -> Tensor:
    return fingerprints(x) * 1_000_003 + y.cpu().long()
