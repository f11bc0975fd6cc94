"""make_private: any PyTorch optimizer takes private gradients. Clip each example, add up, add noise, divide. arXiv:1607.00133."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from hauberk.core.data import Split
from hauberk.core.errors import DataError, UsageError
from hauberk.core.train import Gradients, Loss, Schedule, State
from hauberk.privacy.dp import distributed
from hauberk.privacy.dp.accounting import PrivacyLedger, PrivacyStatement, Release, Spent
from hauberk.privacy.dp.accounting.statement import make_statement
from hauberk.privacy.dp.apart import Watch, one_number
from hauberk.privacy.dp.batches import Batches
from hauberk.privacy.dp.clipping import L1, Clipping, Flat
from hauberk.privacy.dp.engine import check_model, record
from hauberk.privacy.dp.noise import Gaussian, Mechanism, SecureSource, SeededSource, Source
from hauberk.privacy.dp.options import Multiplier, PrivateOptions, multiplier_at, noise_of, population, same_trained, trained


def make_private(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, *, batch_size: int, noise_multiplier: Multiplier,
    clip: float | Clipping = 1.0, delta: float | None = None, options: PrivateOptions | None = None,
) -> Private:
    """Prepare differentially private training of `model` by `optimizer`; neither is changed.

    In a loop of one's own: `for x, y in private.batches(epochs=15): private.step(loss, x, y)`. In the training loop of this
    library: `fit(model, data, optimizer=optimizer, gradients=private)`.

    Arguments:
        model: any module whose examples do not mix; with DistributedDataParallel the module inside it is trained.
        optimizer: over its parameters; any.
        data: what is trained on: a `Split`, a tuple of tensors `(x, y)`, a dataset, or the number of examples.
        batch_size: expected examples of a batch over all processes; sums are divided by it, whatever a batch holds.
        noise_multiplier: deviation of the noise over the clip; or by step, from 0, a schedule.
        clip: greatest L2 norm of one example's gradient, or a strategy of `hauberk.privacy.dp.clipping`.
        delta: δ of the guarantee; None takes 1e-5, or 1/n where that is less.
        options: what seldom has to be changed.

    Returns:
        What draws batches, makes steps and keeps account.

    Raises:
        UsageError: for values out of range, or an optimizer of other parameters.
        ModelError: for a layer whose examples mix, or that nobody can treat.
    """
    return Private(model, optimizer, data, batch_size, noise_multiplier, clip, delta, options or PrivateOptions())


class Private(Gradients):
    """Private gradients, their batches and their account; made by `make_private`.

    Attributes: `ledger`, every release so far; `clipping`, the strategy with its current bound; `steps`; `empty_batches`, steps
    of noise alone; `dropped`, examples whose gradient was not finite and that added nothing; `seeded`, whether noise of any step
    was seeded.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, batch_size: int, noise_multiplier: Multiplier,
        clip: float | Clipping, delta: float | None, options: PrivateOptions,
    ) -> None:
        if not isinstance(options, PrivateOptions):
            raise UsageError(f"options is {options!r}", want="PrivateOptions", fix="Pass options=PrivateOptions(micro_batch=32)")
        self.model, self.optimizer, self.options = distributed.unwrapped(model), optimizer, options
        n = population(data)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise UsageError(f"the batch size is {batch_size!r}", want=f"a whole number from 1 to {n}")
        if not 1 <= batch_size <= n:
            raise UsageError(f"the batch size is {batch_size} of {n} examples", want="an expected batch from 1 to all of them")
        if delta is not None and not 0 < delta < 1:
            raise UsageError(f"delta is {delta}", want="a probability between 0 and 1",
                             fix="Take one well below 1/n: at 1/n a whole example may be let out")
        noise = noise_of(options, multiplier_at(noise_multiplier, 0))
        self.clipping = clip if isinstance(clip, Clipping) else (L1(clip) if noise.norm == 1 else Flat(clip))
        if self.clipping.norm != f"l{noise.norm}":
            raise UsageError(f"{noise.name} noise with a clip in the {self.clipping.norm.upper()} norm",
                             want=f"an L{noise.norm} clip, which this noise is made for")
        check_model(self.model)
        self.parameters = trained(self.model, optimizer)
        self.clipping.bind(self.parameters, float(batch_size))
        noise_of(options, self.clipping.gradient_multiplier(multiplier_at(noise_multiplier, 0)))
        entries = sum(one.numel() for one in self.parameters.values())
        if (covered := getattr(noise, "dimensions", entries)) < entries:
            raise UsageError(f"{noise.name} noise is made for {covered} dimensions", want=f"{entries}, all that is trained")
        self.delta = min(1e-5, 1 / n) if delta is None else delta
        self.batch_size, self.noise_multiplier = batch_size, noise_multiplier
        self.draws = Batches(data, n, batch_size, options)
        self.ledger, self._named = PrivacyLedger(), noise.name
        self.ledger.ahead = weakref.WeakMethod(self._ahead)
        self.steps = self.empty_batches = self.dropped = 0
        self.seeded = options.seed is not None
        self._sums: dict[Parameter, Tensor] = {}
        self._seen = 0
        self._tape: Any = None
        self._watch = Watch(self.model, list(self.parameters.values()), options.reduction)
        self._by_hand = False
        distributed.first_ones([one.data for one in (*self.model.parameters(), *self.model.buffers())])

    def batches(self, epochs: float | None = None, *, steps: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Draw batches afresh, as many as `epochs` passes hold on average, or `steps`; yield x and y of each.

        A batch varies in size and may be empty: hand it to `step` all the same. Every call goes on with the next draw, so that
        many calls of one step each make the run that one call of many makes; nor may any batch of theirs be passed over.

        Raises:
            UsageError: without data to take examples from, or a number of steps; when some batches went by without a step.
        """
        return self._each_released(self.draws.batches(self.draws.steps(epochs, steps)))

    def _each_released(self, drawn: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        self._nothing_open()
        for batch in drawn:
            yield batch
            self._nothing_open()

    def _nothing_open(self) -> None:
        """Refuse to go on, or to tell of an ε, where a forward pass was recorded that no private gradient came of."""
        if self._tape is not None or self._seen:
            raise UsageError(
                "a batch was recorded, but no private gradient was made of it", want="private.backward(loss), its last part too",
                fix="Call private.backward(loss) in place of loss.backward(), with last=True at the end of a batch",
            )

    def step(self, loss: Loss, x: Tensor, y: Tensor) -> float:
        """Make one private step on a batch and return its mean loss, which itself is not private; NaN for an empty batch."""
        value = self._gradients(loss, x, y)
        self.optimizer.step()
        return value

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Watch the forward pass inside the block, for a loss computed by hand; `backward` follows."""
        self._by_hand = True
        with self._recorded():
            yield

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[list[int]]:
        """Record a forward pass; yield the batch sizes of the model's calls."""
        if self._tape is not None:
            self._tape.release()
        try:
            recording = record(self.model, list(self.parameters.values()), norm=self.clipping.norm)
            with self._watch.forward(self.steps) as sizes, recording as tape:
                self._tape = tape
                yield sizes
            if len(set(sizes)) > 1:
                raise _other_batch(sizes, sizes[0])
        except BaseException:
            self._forget()  # a second try begins with the first part, and no example is added or counted twice
            raise

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Clip the gradients of the recorded examples; with the last part of a batch leave the private gradient in `.grad`.

        Arguments:
            loss: what the recorded forward pass led to: the mean of the examples' losses, or as `options.reduction` says.
            last: False when more parts of the same batch follow.

        Raises:
            UsageError: when nothing was recorded.
        """
        if self._tape is None:
            raise UsageError("backward without a recorded forward pass", fix="Compute the loss in: with private.recording()")
        tape, self._tape = self._tape, None
        try:
            self._add(tape, loss)
        except BaseException:
            self._forget()
            raise
        finally:
            tape.release()
        if last:
            self._release()

    # fit's side

    def order(self, data: Split, plan: Schedule, epoch: int) -> Sequence[Tensor]:
        """Return the positions of each batch of an epoch of `fit`; its own expected batch counts, not the schedule's."""
        if len(data) != self.draws.n:
            raise UsageError(f"fit was given {len(data)} examples", want=f"the {self.draws.n} that make_private was told of")
        return self.draws.positions(self.draws.steps(1, None))

    def compute(self, state: State, loss: Loss, x: Tensor, y: Tensor) -> float:
        """Leave the private gradient of a batch in `.grad`, and return the mean loss, NaN for an empty batch."""
        if distributed.unwrapped(state.model) is not self.model or state.optimizer is not self.optimizer:
            raise UsageError("fit trains another model or optimizer than was made private", fix="Pass optimizer= to fit as well")
        return self._gradients(loss, x, y)

    # the account

    def spent(self, delta: float | None = None, *, accountant: str = "pld") -> Spent:
        """Return the ε spent so far, for the way batches were really drawn, with what it rests on.

        It is about adding or removing one example with Poisson sampling, and about replacing one as soon as one batch was of
        fixed size or came from elsewhere, such as a loader. Every step on a batch from elsewhere is counted for every example,
        unless `options.loader` vouches for how it deals them out.

        Arguments:
            delta: None takes that of `make_private`.
            accountant: `pld`, `rdp`, or another of `hauberk.privacy.dp.accounting`.
        """
        self._nothing_open()
        found = self.ledger.epsilon(self.delta if delta is None else delta, accountant=accountant)
        return dataclasses.replace(found, notes=(*found.notes, *self._said()))

    def statement(self, *, unit: str = "example", accountant: str = "pld") -> PrivacyStatement:
        """Return the claim of what was spent so far, with all that another needs to compute it again.

        Arguments:
            unit: what one example stands for, such as "user".
            accountant: as for `spent`.
        """
        said = f"{self.clipping.describe()}; expected batch {self.batch_size}"
        return make_statement(
            self.ledger.releases, self.delta, accountant=accountant, unit=unit, seeded=self.seeded,
            warnings=[said, *self._said()],
        )

    def state_dict(self) -> dict[str, Any]:
        """Return account, clip and draws; model and optimizer have their own."""
        return {
            "ledger": self.ledger.state_dict(), "clipping": self.clipping.state_dict(), "draws": self.draws.state_dict(),
            "steps": self.steps, "empty_batches": self.empty_batches, "dropped": self.dropped,
            "seeded": self.seeded, "by_hand": self._by_hand,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned; the next draws are those that would have followed."""
        if "ledger" not in state:
            raise ValueError("the run so far was not private, which no later step can make good")
        self.draws.load_state_dict(state["draws"])  # what may refuse comes first
        self.clipping.load_state_dict(state["clipping"])
        self.ledger.load_state_dict(state["ledger"])
        self.steps, self.empty_batches, self.dropped = state["steps"], state["empty_batches"], state["dropped"]
        self._by_hand = self._by_hand or bool(state.get("by_hand", False))
        # Noise that can be foretold in some steps is said of the whole run, however it goes on.
        self.seeded = self.seeded or bool(state.get("seeded", False))

    def _ahead(self, steps: int) -> Release:
        """Return what the step so many after the next one will release, drawn as the next or the last batch was."""
        return self.draws.expected(multiplier_at(self.noise_multiplier, self.steps + steps), self._named)

    def _said(self) -> list[str]:
        """Return what the account rests on that the releases do not show."""
        said = [] if not self._by_hand else [
            "a loss was computed by hand: that it keeps the examples apart was not looked at"
        ]
        dealt = any(one.sampling == "shuffled" for one in self.ledger.releases)
        if dealt:
            said.append("that every example was in one batch of each pass is declared by the trainer (options.loader)")
        return said

    # one step

    def _gradients(self, loss: Loss, x: Tensor, y: Tensor) -> float:
        if isinstance(loss, nn.Module):
            raise UsageError(f"the loss is {type(loss).__name__}, called as loss(outputs, y)", want="loss(model, x, y) -> scalar",
                             fix="Pass lambda model, x, y: criterion(model(x), y)")
        self._forget()
        place = next(iter(self.parameters.values())).device
        x, y = x.to(place), y.to(place)
        value, size = math.nan, self.options.micro_batch or max(len(x), 1)
        if len(y) != len(x):
            raise UsageError(f"x holds {len(x)} examples and y {len(y)}", want="the examples along the first dimension of both")
        if self.draws.time_first(tuple(x.shape)):
            raise UsageError(f"x has shape {tuple(x.shape)}, its first dimension that of time", want="the examples first",
                             fix="Pass x.transpose(0, 1), and turn it back inside the model; y with one row an example")
        with self._one_type(x):
            self._watch.look(loss, x, y, self.steps, self.options.micro_batch)
        for begin in range(0, len(x), size):
            part = slice(begin, begin + size)
            with self._recorded() as sizes:
                mean = one_number(loss(self.model, x[part], y[part]))
            if any(one != len(x[part]) for one in sizes):
                self._forget()
                raise _other_batch(sizes, len(x[part]))
            share = 1.0 if self.options.reduction == "sum" else len(x[part]) / len(x)
            value = (0.0 if math.isnan(value) and begin == 0 else value) + float(mean.detach()) * share
            self.backward(mean, last=False)
        self._release()
        return value if self.options.reduction == "mean" else value / max(len(x), 1)

    @contextlib.contextmanager
    def _one_type(self, x: Tensor) -> Iterator[None]:
        """Say what torch means where x is of another type than the parameters."""
        try:
            yield
        except RuntimeError as problem:
            own = next(iter(self.parameters.values())).dtype
            if x.dtype == own or "type" not in str(problem):
                raise
            raise DataError(
                f"the model does not take x of type {x.dtype}: its parameters are {own} ({problem})", want=f"x of type {own}",
                fix="Cast x, or the model, or train under torch.autocast",
            ) from problem

    def _add(self, tape: Any, loss: Tensor) -> None:
        if not tape.batch_size:
            return
        scale = self.options.scale
        # Norms and sums are taken at full precision, also when a caller's autocast is on.
        with torch.autocast(loss.device.type, enabled=False):
            tape.backward(loss * scale if scale != 1.0 else loss, reduction=self.options.reduction, scale=scale)
            norms = tape.norms()
            finite = torch.stack([one.isfinite() for one in norms.values()]).all(0)
            broken = int((~finite).sum())
            if broken and not self.dropped:
                warnings.warn(
                    f"the gradients of {broken} examples of step {self.steps} are not finite: they add nothing, and are counted "
                    "in private.dropped. Look for infinite or missing values in the data; said once",
                    RuntimeWarning, stacklevel=2,
                )
            self.dropped += broken
            for parameter, part in tape.weighted(self.clipping.weights(norms)).items():
                part, held = part.to(_wide(part.dtype)), self._sums.get(parameter)
                self._sums[parameter] = part if held is None else held.add_(part)
        self._seen += tape.batch_size

    def _release(self) -> None:
        try:
            same_trained(self.optimizer, self.parameters)
            z = multiplier_at(self.noise_multiplier, self.steps)
            noise = noise_of(self.options, self.clipping.gradient_multiplier(z), self.clipping.norm)
            self.ledger.add(self.draws.release(self._seen, z, noise.name))  # before it is made: never less than was let out
        except BaseException:
            self._forget()
            raise
        try:
            self._let_out(noise)
        finally:
            self._forget()  # also where it is interrupted: what is accounted for is not waited for any more

    def _let_out(self, noise: Mechanism) -> None:
        """Add the noise, and leave the private gradient in `.grad`."""
        seed = self.options.seed
        source: Source = SecureSource() if seed is None else SeededSource(seed, "noise", self.steps)
        made = []
        for parameter in self.parameters.values():
            total = self._sums.pop(parameter, None)
            total = torch.zeros_like(parameter, dtype=_wide(parameter.dtype)) if total is None else total
            made.append(total)
        distributed.add_up(made, lambda total: noise.add_(total, self.clipping.bound, source))
        for parameter, total in zip(self.parameters.values(), made, strict=True):
            parameter.grad = total.div_(self.batch_size).to(parameter.dtype)
        self.clipping.finish(lambda counted, deviation: self._noised(counted, deviation, source))
        self.empty_batches += distributed.count(self._seen) == 0
        self.steps += 1

    def _noised(self, counted: Tensor, deviation: float, source: Source) -> Tensor:
        distributed.add_up([counted], lambda total: Gaussian(deviation).add_(total, 1.0, source))
        return counted

    def _forget(self) -> None:
        if self._tape is not None:
            self._tape.release()
        self._tape, self._sums, self._seen = None, {}, 0
        self.clipping.forget()


def _other_batch(sizes: list[int], size: int) -> UsageError:
    return UsageError(
        f"the model was called on {', '.join(map(str, sizes[:8]))} rows for {size} examples",
        want="each call on all the examples, once",
        fix="Call the model once per view instead of on views side by side; put the examples along the first dimension",
    )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
