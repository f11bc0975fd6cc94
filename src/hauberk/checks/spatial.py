"""Small turns and shifts: what is left of the accuracy when somebody chooses the worst of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Finding, Gallery, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.target import Target
from hauberk.robustness.attack.physical import spatial_grid

DEGREES, SHIFT = 30.0, 0.1
ADVICE = (
    Advice("Train on images turned and moved at random, and on the worst of a few such draws of each", mitigation="AML.M0003"),
    Advice("Answer with the majority over several turns of the input", mitigation="AML.M0010"),
)


@check(
    "robustness/spatial", pillar="robustness", unit="accuracy", access=Access.LABEL, preset="standard", warn=0.5, fail=0.2,
    question="What accuracy is left when somebody turns and moves the image a little, in the worst way?",
    paper="Engstrom et al. 2019, arXiv:1712.02779",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"), advice=ADVICE,
)
def spatial(context: Context) -> Finding:
    """Accuracy under an exhaustive grid of turns up to 30° and shifts up to a tenth of each side."""
    context.need_classes()
    context.need_images()
    if not all(bool(torch.as_tensor(end).isfinite().all()) for end in context.data.bounds):
        raise NotRun("the data has no finite bounds, so there is no black to fill in from outside (data: bounds)")
    x, y = context.sample(64, 200, 1000)
    angles, shifts = context.settings.scaled(7, 11, 31), context.settings.scaled(3, 3, 5)
    bounds = context.data.bounds

    def make(target: Target) -> tuple[Tensor, Tensor, Tensor]:
        clean = target.labels(x)
        view = target.fresh()
        view.bounds = bounds  # the target may not know them
        z = spatial_grid(view, x, y, degrees=DEGREES, shift=SHIFT, angles=angles, shifts=shifts)
        return clean, z, target.labels(z)

    clean, z, labels = context.shared(("spatial", angles, shifts), make)
    held = (clean == y) & (labels == y)
    figure = context.rate(held)
    right, broken = int((clean == y).sum()), ((clean == y) & ~held).nonzero()[:, 0]
    rows = [
        ("clean", f"{right / max(len(y), 1):.1%}", "–"),
        ("worst of the grid", f"{figure['value']:.1%}", f"{len(broken) / max(right, 1):.1%}"),
    ]
    names = context.data.class_names
    pictures = []
    for at in broken[:3].tolist():
        true, seen = (names[one] if 0 <= one < len(names) else str(one) for one in (int(y[at]), int(labels[at])))
        pictures += [picture(x[at], f"clean: {true}", bounds=bounds), picture(z[at], f"seen as {seen}", bounds=bounds)]
    shown = [Gallery("The smallest turn or shift of the grid that changes a right answer", pictures)] if pictures else []
    wrong = len(y) - right
    if wrong:
        context.note(f"{wrong} of {len(y)} samples are misclassified undisturbed and count as mistakes")
    context.note("what comes in from outside the image has the lowest value")
    return context.finding(
        f"{figure['value']:.1%} of {figure['n']} samples are classified correctly under all {angles * shifts**2} turns and "
        f"shifts; {right / max(len(y), 1):.1%} undisturbed",
        threat=f"turns up to {DEGREES:g}°, shifts up to {SHIFT:.0%} of each side",
        evidence=[Table(f"Turns and shifts, n = {len(y)}", ("images", "accuracy", "success among correct"), rows), *shown],
        **figure,
    )
