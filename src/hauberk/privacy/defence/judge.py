"""What a defence against membership inference is worth: against attacks that know of it, and what it costs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hauberk.core.errors import AccessDenied, DataError
from hauberk.core.kinds import MembershipScores
from hauberk.core.overlap import fingerprints
from hauberk.core.rng import generator
from hauberk.core.target import Target, as_target
from hauberk.privacy.defence.adaptive import ADAPTIVE, REFERENCED, Informed
from hauberk.privacy.defence.alike import Alike, references_for
from hauberk.privacy.defence.change import change_of
from hauberk.privacy.defence.repeated import Repeated
from hauberk.privacy.defence.verdict import NOT_RUN, REFUSED, DefenceVerdict, Row, utility
from hauberk.privacy.membership import confidence_membership, entropy_membership, loss_membership, modified_entropy
from hauberk.privacy.membership.measure import exposure
from hauberk.privacy.membership.references import References
from hauberk.privacy.membership.signals import Records

Inference = Callable[[Target, Records, Records], MembershipScores]
USUAL: dict[str, Inference] = {
    "loss": loss_membership, "confidence": confidence_membership, "entropy": entropy_membership,
    "modified entropy": modified_entropy,
}
Attack = Callable[[Target], MembershipScores]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One attack, as it is run on the plain and on the defended model; None where it is not."""

    attack: str
    adaptive: bool
    plain: Attack | None
    defended: Attack | None


def judge_defence(
    plain: Target | nn.Module, defended: Target | nn.Module, members: Records, non_members: Records, *,
    references: Repeated | int | None = None, test: Records | None = None, copies: int = 16, seed: int = 0,
) -> DefenceVerdict:
    """Judge a defence by the usual attacks and by those that know it, at few false alarms, and by what it costs.

    The strongest adversary known repeats the defence: reference models, trained and protected as the owner's was, show what
    membership does to a record's answers (LiRA, RMIA, the variance prior; where scores are denied, the labels of noisy copies).
    Half of either side is what another adversary knows, who asks the defended model about it: a classifier trained on these
    answers, the label alone, the labels of noisy copies. All are judged on the other half; copies of one record stay together.

    Arguments:
        plain: the model without the defence.
        defended: the same behind an output defence, or another that was trained with one.
        members: records that *both* were trained on.
        non_members: records that neither was.
        references: how the defence is repeated: a `Repeated`; or how many reference models are trained where the defence only
            changes the answers of a torch module or an estimator. None trains 4 then, if that takes at most 2e12 operations (some
            CPU-minutes); 0 none. A defence in training can only be repeated by a `Repeated`. What was not run is told.
        test: records for the utility; None takes the non-members.
        copies: noisy copies per record; 0 leaves these attacks out.
        seed: of the halves, the references, the classifier and the noise.

    Returns:
        The verdict: `summary`, `table()`, `strongest()`, `change`, `helps`, `loss`, `notes`.

    Raises:
        DataError: for fewer than 8 different records on a side.
        UsageError: for an odd count of references, or a count for a defence that cannot be repeated by itself.
    """
    models = as_target(plain), as_target(defended)
    halves = halved(members, non_members, seed)
    alike = references_for(*models, (members, non_members), references, seed)
    informed = Informed((halves[0][0], halves[1][0]), (halves[0][1], halves[1][1]), copies, seed)
    rows: list[Row] = []
    scores: tuple[list[MembershipScores], list[MembershipScores]] = ([], [])
    for trial in _trials(informed, alike):
        runs = trial.plain, trial.defended
        found = [None if run is None else _asked(run, model) for run, model in zip(runs, models, strict=True)]
        for kept, one in zip(scores, found, strict=True):
            kept += [] if one is None else [one]
        absent = [NOT_RUN if run is None else REFUSED for run in runs]
        exposed = [None if one is None else exposure(one) for one in found]
        rows.append(Row(trial.attack, trial.adaptive, exposed[0], exposed[1], (absent[0], absent[1])))
    held = non_members if test is None else test
    # Where scores are denied and no copies are asked for, references were trained and none of them was heard.
    heard = any(row.attack in REFERENCED and row.defended is not None for row in rows)
    notes = alike.notes if copies else (*alike.notes, "not run: the labels of noisy copies (copies is 0)")
    return DefenceVerdict(
        tuple(rows), utility(models[0], held), utility(models[1], held), change_of(*scores, seed=seed), not heard, notes
    )


def _trials(informed: Informed, alike: Alike) -> list[Trial]:
    made = []
    for name, usual in USUAL.items():
        run: Attack = functools.partial(_plainly, usual, informed)
        made.append(Trial(name, False, run, run))
    for name, knowing in ADAPTIVE.items():
        if informed.copies or knowing is not Informed.noisy_labels:
            run = functools.partial(knowing, informed)
            made.append(Trial(name, True, run, run))
    if alike.defended is None:
        return [*made, Trial("reference models under the defence", True, None, None)]
    for name, against in REFERENCED.items():
        if informed.copies or against is not Informed.noisy_labels_against:
            made.append(Trial(name, True, _against(against, informed, alike.plain), _against(against, informed, alike.defended)))
    return made


def _against(
    attack: Callable[[Informed, Target, References], MembershipScores], informed: Informed, references: References | None
) -> Attack | None:
    return None if references is None else lambda target: attack(informed, target, references)


def _plainly(attack: Inference, informed: Informed, target: Target) -> MembershipScores:
    return attack(target, *informed.judged)


def _asked(attack: Attack, target: Target) -> MembershipScores | None:
    try:
        return attack(target.fresh())
    except AccessDenied:
        return None


def halved(members: Records, non_members: Records, seed: int) -> list[tuple[Records, Records]]:
    """Return for either side what is known and what is judged, half each; equal inputs are on one side of that line.

    What is among the members and the others alike is known, and judged on neither side.

    Raises:
        DataError: for fewer than 8 different records on a side.
    """
    marks = [fingerprints(one[0]) for one in (members, non_members)]
    made = []
    for records, own, other, name in zip((members, non_members), marks, marks[::-1], ("members", "others"), strict=True):
        kinds, kind = torch.unique(own, return_inverse=True)
        if len(kinds) < 8 or len(records[1]) != len(own):
            raise DataError(f"there are {len(kinds)} different {name}", want="at least 8, with a label each")
        # Random places, and those of records on both sides before all others.
        place = torch.randperm(len(kinds), generator=generator(seed, "defence halves", name))
        first = place.double() - len(kinds) * torch.isin(kinds, other)
        known = (first.argsort().argsort() < len(kinds) // 2) | torch.isin(kinds, other)
        if bool(known.all()):
            raise DataError(f"all {len(kinds)} different {name} are on the other side too", want="members and others that differ")
        made.append((_taken(records, known[kind]), _taken(records, ~known[kind])))
    return made


def _taken(records: Records, chosen: Tensor) -> Records:
    x, y = records
    return x[chosen.to(x.device)], y[chosen.to(y.device)]
