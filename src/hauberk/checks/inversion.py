"""Privacy of classes: what the model itself holds to be the typical input of each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.checks.context import Context, NotRun
from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.finding import Advice, Finding, Gallery, Status, Table
from hauberk.core.kinds import Reconstruction, check
from hauberk.core.picture import picture
from hauberk.core.target import Normalize, Target
from hauberk.core.train import Schedule, fit
from hauberk.privacy.inversion.trial import scalar_bounds
from hauberk.privacy.model_inversion import judge_inversion, mi_face
from hauberk.privacy.model_inversion.descent import TAGS

THREAT = "an adversary who holds the model and nothing else"
ADVICE = (
    Advice("Where classes are people, give the model to nobody who must not know what they look like", "", "AML.M0001"),
    Advice("Train with differential privacy, or with a bottleneck (hauberk.privacy.defence.mid), and invert again"),
)


class Asked(nn.Module):
    """A target as a module, so that what a search spends is counted."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.target.logits(x)


@check(
    "privacy/model-inversion", pillar="privacy", unit="rate", better="lower", access=Access.GRADIENT, preset="thorough",
    tags=TAGS, advice=ADVICE, question="Can one who holds the model draw what its classes look like?",
    paper="Fredrikson et al. 2015, CCS",
)
def model_inversion(context: Context) -> Finding:
    """Share of classes whose inversion another classifier, trained on held-out samples, recognises."""
    classes = context.need_classes()
    context.need_images()
    train = context.split("train")
    x, y = train.sample(context.settings.scaled(2000, 5000, 10_000), context.seed, "inversion truth")
    present = [k for k in y.unique().tolist() if 0 <= k < classes]
    labels = torch.tensor(present[: context.settings.scaled(10, 30, 100)])
    if len(labels) < 2:
        raise NotRun(f"the training data holds {len(labels)} classes; at least 2 are needed")
    evaluator, able = evaluator_of(context, classes, (x, y))
    low, high = (float(torch.as_tensor(end).double().mean()) for end in context.data.bounds)
    found = mi_face(
        Asked(context.target), labels, shape=tuple(x.shape[1:]), steps=context.settings.scaled(60, 150, 300), bounds=(low, high)
    )
    made = Reconstruction(found.x.to(x.device).float(), y=labels, loss=found.loss)
    judged = judge_inversion(made, evaluator, (x.float(), y), bounds=context.data.bounds)
    chance = 1 / classes
    status = Status.WARN if judged.top1_interval.low > chance else Status.PASS
    context.note("a class that is no person (a digit, a kind of animal) gives no one away: read this where classes are people")
    context.note(f"the evaluator is right on {able:.1%} of the training samples themselves; chance is {chance:.1%}")
    rows = [
        ("recognised first", f"{judged.top1:.1%}"), ("among the first five", f"{judged.top5:.1%}"),
        ("nearest training sample is of the class", f"{judged.nearest_right:.1%}"),
        ("RMS distance to the nearest of the class", f"{judged.nearest:.3g}"), ("PSNR in dB", f"{judged.psnr:.1f}"),
        ("SSIM", "–" if judged.ssim is None else f"{judged.ssim:.3f}"),
    ]
    pictures = []
    for place in range(min(4, len(labels))):
        label = int(labels[place])
        own = x[y == label]
        closest = own[(own - found.x[place].to(own)).flatten(1).norm(dim=1).argmin()]
        pictures.append(picture(found.x[place], f"class {label}, from the model", bounds=context.data.bounds))
        pictures.append(picture(closest, "nearest training sample", bounds=context.data.bounds))
    return context.finding(
        f"of {judged.n} classes inverted, another classifier recognises {judged.top1:.0%}; chance is {chance:.0%}",
        value=judged.top1, n=judged.n, interval=judged.top1_interval, threat=THREAT, status=status,
        evidence=(
            Table("Inversions judged", ("figure", "value"), rows), Gallery("What the model gives of its classes", pictures),
        ),
    )


def evaluator_of(context: Context, classes: int, truth: tuple[Tensor, Tensor]) -> tuple[nn.Module, float]:
    """Return a small net of another build, trained on the test split alone, and how often it is right on training samples.

    Raises:
        NotRun: where that is too seldom to judge anything.
    """
    low, high = scalar_bounds(context.data.bounds)
    x, y = context.data.test.sample(context.settings.scaled(1000, 5000, 10_000), context.seed, "inversion evaluator")
    with rng.isolated(rng.derive_seed(context.seed, "inversion evaluator")):
        model = nn.Sequential(
            Normalize(low, high - low), nn.Conv2d(x.shape[1], 24, 3, stride=2, padding=1), nn.ELU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.ELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(768, classes),
        )
    steps = max(1, len(y) // 32)
    plan = Schedule(epochs=max(3, min(30, 250 // steps)), batch_size=32, seed=context.seed)
    fit(model, Split(x.float(), y), optimizer=torch.optim.Adam(model.parameters(), lr=3e-3), schedule=plan)
    model.requires_grad_(False)
    with torch.no_grad():
        able = float(torch.cat([model(part.float()).argmax(1) for part in truth[0].split(500)]).eq(truth[1]).double().mean())
    if able < weakest(classes):
        raise NotRun(f"the evaluator, trained on the test split, is right on {able:.0%} of training samples: too weak to judge")
    return model, able


def weakest(classes: int) -> float:
    """Return the accuracy below which a classifier of so many classes says nothing."""
    return min(2 / classes + 0.2, 0.9)
