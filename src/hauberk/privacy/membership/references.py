"""Reference models: trained as the target was, on known halves of the records, so that it is known what membership does."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.apart import Elsewhere, Spread, fit_apart
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.overlap import fingerprints
from hauberk.core.stacked import fit_stacked, logits_of, one_at_a_time
from hauberk.core.target import Target
from hauberk.core.train import Schedule
from hauberk.privacy.membership.estimators import Fitting, fit_estimator, fresh_estimator
from hauberk.privacy.membership.kept import Kept, about
from hauberk.privacy.membership.signals import Records, foreign, paired, remembered

USUAL = Schedule(epochs=40, batch_size=64)
Signal = Callable[[Tensor, Tensor], Tensor]  # of logits (n, classes) and labels (n,)


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
    _known: dict[tuple[Signal, Target], Tensor] = dataclasses.field(default_factory=dict, init=False, repr=False)

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
        # One table of signals and one order of records serve all that are taken from the same references.
        vars(made).update(_known=self._known, _order=self._order)
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
        for model, logits in zip(self.models, self.logits, strict=True):
            if (signal, model) not in self._known:
                self._known[signal, model] = signal(logits.double(), self.y.long())
        values = torch.stack([self._known[signal, model][places] for model in self.models])
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
    workers: int = 1, spread: Spread | None = None, keep: str | Path | None = None,
) -> References:
    """Train reference models on complementary random halves of a pool of records.

    Torch modules of one architecture are trained side by side in one pass, with Adam, `schedule` and `lr`. Those that cannot be
    stacked (recurrent layers, a forward pass that branches on values), or of which two are too large for the cache, are trained
    one by one, and estimators of scikit-learn are fitted so: here, or in processes, or where `spread` takes them.

    Arguments:
        make: a module, whose architecture is taken and initialised anew (where some of its layers are frozen, these are kept as
            they are; half precision is trained in float32); an estimator, which is cloned; or a function of a seed that returns
            either, untrained, a new one at each call.
        records: the pool, x of shape (n, ...) and y of shape (n,): what will be judged, and more of the kind where there is.
        count: of models, even.
        schedule: epochs, batch size and seed: those of the target's training.
        lr: of Adam.
        workers: processes for what is trained one by one; the results are those of one, see `fit_apart`.
        spread: runs `spread(function, items)` elsewhere in place of these, as `ray.util.multiprocessing.Pool().map` does.
        keep: a folder for the weights of each module as soon as it is trained: asked again, for as many or more of them, with all
            else the same, those are not trained again. None keeps nothing; estimators cannot be kept.

    Raises:
        ModelError: for a module whose weights cannot be drawn anew, or a model that cannot be trained elsewhere.
        UsageError: for an odd count, something that cannot be trained, or a folder that keeps other models.
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
    made, elsewhere = [_make(make, seed) for seed in seeds], Elsewhere(workers, spread)
    _refuse_shared(made)
    if all(isinstance(one, nn.Module) for one in made):
        held = next(iter(made[0].parameters()), x)
        placed = x.to(held.device, held.dtype)
        _refuse_misfits(made[0], placed, y)
        shelf = None if keep is None else Kept(Path(keep), about(made[0], _keys(x, y), schedule, lr))
        records = placed, y.to(held.device).long()
        if elsewhere and one_at_a_time(made, *records):
            fit_apart(made, *records, index, schedule=schedule, lr=lr, elsewhere=elsewhere, shelf=shelf)
        else:
            fit_stacked(made, *records, index, schedule=schedule, lr=lr, shelf=shelf)
        models = [Target(one) for one in made]
    elif not any(isinstance(one, nn.Module) for one in made):
        if keep is not None:
            raise UsageError("estimators cannot be kept", want="torch modules, whose weights can", fix="Leave `keep` out")
        width = int(y.max()) + 1
        items = [Fitting(one, x[rows], y[rows], width) for one, rows in zip(made, index, strict=True)]
        models = [Target(one, outputs="probabilities") for one in _fitted(items, elsewhere)]
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


def _refuse_shared(made: Sequence[Any]) -> None:
    modules = [one for one in made if isinstance(one, nn.Module)]
    held = [id(weight) for one in modules for weight in one.parameters() if weight.requires_grad]
    if len({id(one) for one in made}) < len(made) or len(set(held)) < len(held):
        raise UsageError("the factory returned the same model or weights more than once", want="a new model at each call")


def _refuse_misfits(module: nn.Module, x: Tensor, y: Tensor) -> None:
    if not bool(x.isfinite().all()):
        broken = int((~x.isfinite()).flatten(1).any(1).sum())
        raise DataError(f"{broken} of {len(x)} records hold NaN or infinity", want="finite numbers", fix="Leave them out")
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

    Frozen layers beside others that are not are kept: they were not trained on the records. Where all are frozen, as in a model
    that is only served, all are drawn, and can be trained.

    Raises:
        ModelError: where a layer holds weights that it cannot draw.
    """
    made = _single_precision(copy.deepcopy(module))
    partly = any(one.requires_grad for one in made.parameters())
    kept = {
        layer for layer in made.modules()
        if partly and (own := [*layer.parameters(recurse=False)]) and not any(one.requires_grad for one in own)
    }
    for name, layer in made.named_modules():
        held = [] if layer in kept else [*layer.parameters(recurse=False)]
        drawn = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
        if drawn is None and held:
            raise ModelError(
                f"the layer '{name or type(layer).__name__}' ({type(layer).__name__}) has weights and no reset_parameters",
                want="layers that can be initialised anew", fix="Give a function of a seed that returns a fresh model",
            )
    with rng.isolated(seed):
        for layer in made.modules():
            drawn = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(drawn) and layer not in kept:
                drawn()
    for parameter in made.parameters():
        parameter.grad = None
        if not partly and parameter.is_floating_point():
            parameter.requires_grad_(True)
    return made


def _single_precision(module: nn.Module) -> nn.Module:
    """Return the module, in float32 where it is in half precision, in which Adam's small steps are lost or overflow."""
    half = any(one.dtype in (torch.float16, torch.bfloat16) for one in module.parameters())
    return module.float() if half else module


def _make(make: object, seed: int) -> Any:
    if isinstance(make, nn.Module):
        return redrawn(make, seed)
    if callable(getattr(make, "fit", None)) and hasattr(make, "get_params"):
        return fresh_estimator(make, seed)
    if callable(make) and not isinstance(make, type):
        with rng.isolated(seed):  # it may seed the global stream, or draw from it
            made = make(seed)
        if isinstance(made, nn.Module):
            return _single_precision(made)
        if callable(getattr(made, "fit", None)):
            return made
        raise UsageError(f"the factory returned a {type(made).__name__}", want="a torch module or an estimator, untrained")
    raise UsageError(
        f"reference models cannot be made from a {type(make).__name__}",
        want="a torch module, an estimator of scikit-learn, or a function of a seed that returns one",
    )


def _fitted(items: list[Fitting], elsewhere: Elsewhere) -> list[Any]:
    made: dict[int, Any] = {}
    for outcome in elsewhere(fit_estimator, items, f"{len(items)} estimators"):
        if outcome.error is not None:
            raise ModelError(f"reference model {outcome.index} could not be fitted ({outcome.error})") from outcome.error
        made[outcome.index] = outcome.value
    return [made[index] for index in range(len(items))]


def _keys(x: Tensor, y: Tensor) -> Tensor:
    return remembered("fingerprints", (x,), lambda: fingerprints(x)) * 1_000_003 + y.cpu().long()
