"""The reference models that a defence is judged with: those that were asked for, or those that can be made unasked."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from hauberk.core.errors import HauberkError, UsageError
from hauberk.core.target import Target
from hauberk.privacy.defence.repeated import Repeated, output_defence
from hauberk.privacy.membership.matching import ROUNDS, Like, operations, references_like, retrainable
from hauberk.privacy.membership.references import References
from hauberk.privacy.membership.signals import Records

COUNT = 4  # trained unasked
LIMIT = 2 * 10**12  # floating-point operations that training unasked may take: a few CPU-minutes
MISSING = "not run: reference models under the defence, the strongest attack known"


@dataclasses.dataclass(frozen=True)
class Alike:
    """Reference models of the plain and of the defended model, each None where there are none, and what is to be said of them."""

    plain: References | None
    defended: References | None
    notes: tuple[str, ...]


def references_for(
    plain: Target, defended: Target, sides: tuple[Records, Records], references: Repeated | int | None, seed: int
) -> Alike:
    """Return the references that `judge_defence` attacks with; see there.

    Raises:
        UsageError: for a count where the defence cannot be repeated by itself, or an odd one.
    """
    if isinstance(references, Repeated):
        pool = torch.cat([one[0] for one in sides]), torch.cat([one[1] for one in sides])
        before, after = references.trained(pool, seed)
        notes = [f"{len(after)} reference models repeat the defence"]
        if before is None:
            notes.append("not run: reference models of the plain model (Repeated(plain=...)); it may gain more than told")
        return Alike(before, after, tuple(notes))
    if references == 0:
        return _none("references is 0")
    protect, source = output_defence(defended, plain), retrainable(plain)
    if protect is None or source is None:
        why = "the defence is no known change of answers" if protect is None else "the model cannot be trained anew from here"
        if references is not None:
            raise UsageError(f"references is {references}, but {why}", want="a Repeated, which says how to train and protect")
        return _none(f"{why}: give references=Repeated(train, protect)")
    if references is None and isinstance(source, nn.Module):
        n = sum(len(one[1]) for one in sides)
        try:
            # Half of the pool for each of them, and pilots that take up to twice the longest schedule.
            spent = 3.0 * operations(source, sides[0][0]) * ROUNDS[-1] * n * (COUNT / 2 + 1)
        except (RuntimeError, NotImplementedError) as error:
            return _none(f"the model cannot be trained anew ({error})")
        if spent > LIMIT:
            return _none(f"{COUNT} of them would take up to {spent:.0e} operations: ask for them (references={COUNT})")
    try:
        before, said = references_like(plain, *sides, Like(references or COUNT, seed=seed))
    except HauberkError as error:
        if references is not None:
            raise
        return _none(f"the model cannot be trained anew ({error})")
    notes = [f"{len(before)} reference models were trained like the model, and put behind the defence", *([said] if said else [])]
    return Alike(*Repeated(before, protect).trained((before.x, before.y), seed), tuple(notes))


def _none(why: str) -> Alike:
    return Alike(None, None, (f"{MISSING}; {why}",))
