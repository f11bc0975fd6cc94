"""The side effects of defences: what each gains, and what it costs elsewhere."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hauberk.assets.extraction.substitute import substitute
from hauberk.core import progress
from hauberk.core.data import Split
from hauberk.core.errors import ModelError
from hauberk.core.finding import Finding, Interval, Status, Table
from hauberk.core.kinds import MembershipScores
from hauberk.core.rng import derive_seed
from hauberk.core.stats import wilson
from hauberk.core.target import Target
from hauberk.core.threat import Linf
from hauberk.privacy.defence.repeated import defended_references
from hauberk.privacy.dp import to_group_norm
from hauberk.privacy.membership.loss import loss_membership
from hauberk.privacy.membership.measure import exposure
from hauberk.privacy.membership.variance_prior import variance_prior
from hauberk.robustness.attack import pgd
from hauberk.study.defended import ROWS, Defended, private
from hauberk.study.images import Images, Pair
from hauberk.study.inverting import Search, invert
from hauberk.study.settings import Settings
from hauberk.study.shelf import Shelf
from hauberk.study.statistics import cell, mean_interval
from hauberk.study.training import accuracy
from hauberk.trust.calibration import reliability, top_label

COLUMNS = (
    "defence", "clean accuracy", "accuracy under PGD", "membership TPR", "at FPR", "membership AUC", "inversion PSNR in dB",
    "extraction fidelity", "calibration error", "privacy",
)
PGD_STEPS = 20


def side_effects(settings: Settings, shelf: Shelf, images: Images) -> Finding:
    """Return the comparison: a row a defence, a column what it might gain or cost.

    The same members train every row. Membership is judged by reference models trained with the same defence, as an adversary who
    knows it would; extraction by a student of the answers to held-out images; inversion by the gradients of held-out images.
    """
    held: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for row in progress.track(ROWS, "defences", len(ROWS)):
        progress.say(row.name)
        if row.same in refused:
            continue
        try:
            held[row.name] = _measured(settings, shelf, images, row)
        except ModelError as error:  # a defence that does not take this network costs its row, not the hours of the others
            refused[row.name] = f"{row.name} does not take this network: {error.problem}"[:300]
    lines = [
        _line(settings, row.name, held[row.name]) if row.name in held else (row.name, *["-"] * (len(COLUMNS) - 1)) for row in ROWS
    ]
    psnr = held["adversarial training"]["psnr"]
    mean, span = mean_interval(psnr)
    base = mean_interval(held["standard"]["psnr"])[0]
    attack = "variance-prior with reference models of the same defence" if settings.scale.references else "the loss"
    return Finding(
        "privacy/side-effects", "privacy", "What does each defence gain, and what does it cost elsewhere?", Status.WARN,
        value=mean, unit="dB", n=len(psnr), interval=Interval(span.low, span.high, "bootstrap"), better="lower",
        threat=f"membership by {attack}; inversion of single gradients, knowing what was done to them; "
        f"PGD of {PGD_STEPS} steps; a student of all answers",
        access="GRADIENT",
        summary=f"inversion reaches {mean:.1f} dB on the adversarially trained model and {base:.1f} dB on the standard one; the "
        "table shows what each defence costs in the other columns",
        evidence=[Table("Defences by their side effects", COLUMNS, lines)],
        notes=[
            f"trained on {settings.scale.forgets} members; TPR at 0.1 % false positives, or the lowest rate that as many "
            "non-members resolve, with its 95 % interval; other intervals: Wilson's for shares, resampled images for PSNR",
            "where gradients are changed before they are sent, inversion alone differs: the model is the same; the row of DP-SGD "
            "alone shares its gradients as they are, which its training never does",
            *refused.values(),
            *([] if settings.network == "small-cnn" else ["DP-SGD trains with group in place of batch normalisation"]),
        ],
    )


def _measured(settings: Settings, shelf: Shelf, images: Images, row: Defended) -> dict[str, Any]:
    source = row.same or row.name
    module, told = _model(settings, shelf, images, source)
    victims = images.victims(settings.scale.images)
    place = f"effects-{_slug(row.name)}{'-knowing' if row.known else ''}"
    figures, _ = invert(
        shelf, place, module, victims, Search(settings.scale.iterations, derive_seed(settings.seed, "effects"), settings.tv),
        defence=row.sends, known=row.known,
    )
    rest = shelf.figures(f"effects-{_slug(source)}-figures", lambda: _figures(settings, shelf, images, source, module))
    return {**rest, "psnr": figures["psnr"], "told": told if not row.same else ""}


def _sides(settings: Settings, images: Images) -> tuple[Pair, Pair]:
    """Return members and non-members, of the training images."""
    n = min(settings.scale.forgets, len(images.train[1]) // 2)
    x, y = images.train
    return (x[:n], y[:n]), (x[n : 2 * n], y[n : 2 * n])


def _model(settings: Settings, shelf: Shelf, images: Images, name: str) -> tuple[nn.Module, str]:
    return _trained(settings, shelf, images, name, _sides(settings, images)[0], "target")


def _trained(
    settings: Settings, shelf: Shelf, images: Images, name: str, pair: Pair, which: str
) -> tuple[nn.Module, str]:
    row = next(one for one in ROWS if one.name == name)
    seed = derive_seed(settings.seed, "effects", name, which) % 2**31
    module = images.network(settings.network, seed, settings.scale.width).to(settings.device)
    if row.train is private:  # batch normalisation mixes the examples whose gradients are to be clipped one by one
        module = to_group_norm(module)
    place = f"effects-{_slug(name)}-{which}"

    def train() -> None:
        told = row.train(module, Split(*pair), settings, seed)
        shelf.figures(f"{place}-told", lambda: {"told": told})  # kept before the weights: a break between them loses neither

    shelf.weights(place, module, train)
    return module, str(shelf.figures(f"{place}-told", dict).get("told", ""))


def _figures(settings: Settings, shelf: Shelf, images: Images, name: str, module: nn.Module) -> dict[str, Any]:
    x, y = images.test
    half = len(x) // 2
    clean = accuracy(module, x, y)
    some = min(half, settings.scale.tested // 2)
    z = pgd(module, x[:some], y[:some], Linf(settings.headline), steps=PGD_STEPS, seed=derive_seed(settings.seed, "effects"))
    hits = accuracy(module, z, y[:some])
    found = exposure(_membership(settings, shelf, images, name, module))
    student = substitute(Target(module), x[:half], seed=settings.seed)
    with torch.no_grad():
        answers = torch.cat([module(part) for part in x[half:].split(500)])
        agreed = answers.argmax(1).cpu() == torch.cat([student(part.cpu()) for part in x[half:].split(500)]).argmax(1)
    confidence, right = top_label(answers.softmax(1), y[half:])
    span = found.tpr_interval
    return {
        "clean": [int(clean.sum()), len(clean)], "robust": [int(hits.sum()), some],
        "tpr": [found.tpr, span.low, span.high], "fpr": found.fpr,
        "auc": [found.roc.auc, found.auc_interval.low, found.auc_interval.high],
        "fidelity": [int(agreed.sum()), len(agreed)], "ece": reliability(confidence, right).ece,
    }


def _membership(settings: Settings, shelf: Shelf, images: Images, name: str, module: nn.Module) -> MembershipScores:
    members, others = _sides(settings, images)
    target = Target(module)
    if not settings.scale.references:
        return loss_membership(target, members, others)
    numbers = itertools.count()

    def train(split: Split, _: int) -> nn.Module:
        at = next(numbers)
        progress.say(f"{name}: reference model {at + 1} of {settings.scale.references}")
        return _trained(settings, shelf, images, name, split.tensors(), f"reference-{at}")[0]

    pool = torch.cat([members[0], others[0]]), torch.cat([members[1], others[1]])
    made = defended_references(train, pool, count=settings.scale.references, seed=derive_seed(settings.seed, "effects"))
    return variance_prior(target, members, others, references=made)


def _line(settings: Settings, name: str, held: dict[str, Any]) -> Sequence[str]:
    def share(key: str) -> str:
        hits, n = held[key]
        span = wilson(hits, n)
        return f"{hits / max(n, 1):.3f} [{span.low:.3f}, {span.high:.3f}]"

    tpr, auc = held["tpr"], held["auc"]
    return (
        name, share("clean"), share("robust"), f"{tpr[0]:.2%} [{tpr[1]:.2%}, {tpr[2]:.2%}]", f"{held['fpr']:.2%}",
        f"{auc[0]:.3f} [{auc[1]:.3f}, {auc[2]:.3f}]", cell(*mean_interval(held["psnr"]), 1), share("fidelity"),
        f"{held['ece']:.3f}", held["told"] or "-",
    )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


