"""PATE as a whole: teachers on disjoint shards, private answers to public questions, a student that may be given away."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.data import Split
from hauberk.core.errors import DataError, UsageError
from hauberk.core.target import evaluating
from hauberk.core.train import class_logits, fit
from hauberk.privacy.dp.accounting import PrivacyLedger, Spent
from hauberk.privacy.dp.noise import Source
from hauberk.privacy.dp.pate.aggregate import Aggregator, Answers, count_votes

Build = Callable[[], nn.Module]
Train = Callable[[nn.Module, Split], Any]


@dataclasses.dataclass
class Pate:
    """A student, and what it cost.

    Arguments:
        student: trained on public questions and private answers alone; may be published at the ledger's ε.
        answers: the private answers.
        ledger: their releases.
        votes: counts by class of each question, shape (n, K): private data, as the teachers are.
    """

    student: nn.Module
    answers: Answers
    ledger: PrivacyLedger
    votes: Tensor

    def epsilon(self, delta: float, *, accountant: str = "pld") -> Spent:
        """Return the data-independent ε at δ: what adding or removing one record gives away at most; publishable."""
        return self.ledger.epsilon(delta, accountant=accountant)


def pate(
    build: Build, private: Split, public: Tensor, aggregator: Aggregator, *, teachers: int = 50, train: Train = fit,
    seed: int = 0, source: Source | None = None,
) -> Pate:
    """Train teachers on disjoint shards of private data, ask them about public inputs, and train a student on the answers.

    Arguments:
        build: returns a new, untrained classifier.
        private: the data to protect; nothing but the aggregator's answers depends on it.
        public: inputs that are not private, shape (n, ...).
        aggregator: `LNMax`, `GNMax` or `ConfidentGNMax`.
        teachers: how many; more hide each record better and know less.
        train: trains a model in place on a split, each teacher and the student: `fit`, or a call of it with options of your own.
        seed: of shards and first weights, not of the noise.
        source: of the noise; None takes a secure one.

    Raises:
        DataError: for fewer samples than teachers, or no answer to train a student on.
        UsageError: for fewer than two teachers.

    Paper: Papernot et al. 2017, arXiv:1610.05755; 2018, arXiv:1802.08908.
    """
    if not isinstance(public, Tensor):
        raise DataError(f"the public inputs are a {type(public).__name__}", want="one tensor, without labels",
                        fix="Pass the inputs alone: split.tensors()[0]")
    if not callable(getattr(aggregator, "answer", None)):
        raise UsageError(f"the aggregator is {aggregator!r}", want="LNMax, GNMax or ConfidentGNMax", fix="Pass GNMax(sigma=40.0)")
    ensemble = train_teachers(build, private, teachers, train=train, seed=seed)
    votes = count_votes(*ask(ensemble, public))
    answers = aggregator.answer(votes, source=source)
    student = train_student(build, public, answers, train=train, seed=seed)
    _apart(student, ensemble)
    return Pate(student, answers, PrivacyLedger(answers.releases), votes)


def train_teachers(build: Build, private: Split, teachers: int, *, train: Train = fit, seed: int = 0) -> list[nn.Module]:
    """Return teachers, each trained on a shard of its own; a record is in exactly one.

    Arguments:
        build: returns a new, untrained classifier.
        private: a sample's teacher follows from the seed and the sample itself, so that one more or less, wherever it lies,
            changes no other's place; equal samples share a teacher.
        teachers: how many.
        train: trains a model in place on a split; it must know nothing of the other shards.
        seed: of shards and first weights.

    Raises:
        DataError: for fewer samples than teachers.
        UsageError: for fewer than two teachers.
    """
    if teachers < 2:
        raise UsageError(f"{teachers} teachers were asked for", want="at least 2; tens or hundreds give useful privacy")
    if not isinstance(private, Split):
        raise DataError(f"the private data is a {type(private).__name__}", want="a Split", fix="Pass Split(x, y)")
    if len(private) < teachers:
        raise DataError(f"there are {len(private)} samples for {teachers} teachers", want="at least one each")
    place = _places(private, teachers, rng.derive_seed(seed, "pate", "shards"))
    shards = [(place == number).nonzero().flatten() for number in range(teachers)]
    made: list[nn.Module] = []
    for number, shard in enumerate(shards):
        one = _trained(build, Split(*private.take(shard)), train, rng.derive_seed(seed, "pate", "teacher", number), made)
        made.append(one)
    return made


def _places(private: Split, teachers: int, seed: int) -> Tensor:
    """Return the teacher of each sample, shape (n,): a keyed hash of its bytes, which no other sample and no order is in."""
    key = (seed % (1 << 64)).to_bytes(8, "big")
    rows = [one.detach().cpu().reshape(len(private), -1).contiguous().view(torch.uint8).numpy() for one in private.tensors()]
    joined = (b"".join(part.tobytes() for part in row) for row in zip(*rows, strict=True))
    hashed = [hashlib.blake2b(one, key=key, digest_size=8) for one in joined]
    return torch.tensor([int.from_bytes(one.digest(), "big") % teachers for one in hashed])


def ask(teachers: Sequence[nn.Module], public: Tensor, *, batch_size: int = 1024) -> tuple[Tensor, int]:
    """Return each teacher's label of each input, shape (teachers, n), which is private data, and the number of classes."""
    found, classes = [], 0
    for teacher in teachers:
        with torch.no_grad(), evaluating(teacher):
            place = next((one.device for one in teacher.parameters()), torch.device("cpu"))
            logits = class_logits(torch.cat([teacher(part.to(place)).cpu() for part in public.split(batch_size)]))
        classes = logits.shape[1]
        found.append(logits.argmax(1))
    return torch.stack(found), classes


def train_student(build: Build, public: Tensor, answers: Answers, *, train: Train = fit, seed: int = 0) -> nn.Module:
    """Return a classifier trained on the questions that were answered: by post-processing as private as the answers.

    Arguments:
        build: returns a new, untrained classifier.
        public: all the inputs that were asked about, shape (n, ...).
        answers: to them.
        train: trains a model in place on a split.
        seed: of first weights.

    Raises:
        DataError: when nothing was answered.
    """
    kept = answers.answered
    if not bool(kept.any()):
        raise DataError("no question was answered", want="at least one answer",
                        fix="Lower the threshold or the noise, or take more teachers")
    return _trained(build, Split(public[kept], answers.labels[kept]), train, rng.derive_seed(seed, "pate", "student"))


def _trained(build: Build, data: Split, train: Train, seed: int, others: Sequence[nn.Module] = ()) -> nn.Module:
    with rng.isolated(seed):
        model = None if isinstance(build, nn.Module) else build()
        if not isinstance(model, nn.Module):
            raise UsageError(f"build is, or returns, {type(build if model is None else model).__name__}",
                             want="a function without arguments that returns a new model", fix="Pass lambda: MyModel()")
        _apart(model, others)
        if len(data):  # a teacher without samples answers all the same
            train(model, data)
    return model.eval()


def _apart(model: nn.Module, others: Sequence[nn.Module]) -> None:
    """Refuse a model that learns into what one before has: it would carry the records of one shard to another."""
    held = {part for one in others for part in _learnt(one)}
    if held & _learnt(model) or any(model is one for one in others):
        raise UsageError("build returned weights that it had returned before", want="a new, untrained model from every call",
                         fix="Make the model inside of the function: lambda: MyModel(). A frozen part may be shared")


def _learnt(model: nn.Module) -> set[int]:
    """Return which tensors training may change: weights that are not frozen, and buffers such as running means."""
    return {id(one) for one in model.parameters() if one.requires_grad} | {
        id(one) for one in model.buffers() if one.is_floating_point()}
