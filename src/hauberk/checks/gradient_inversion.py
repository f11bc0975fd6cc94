"""Inversion of gradients by search: how much of a sample comes back from what one participant of joint training sends."""

from __future__ import annotations

import torch

from hauberk.checks.context import Context, NotRun
from hauberk.checks.gradients import ADVICE as ADVICE_ON_GRADIENTS
from hauberk.checks.gradients import THREAT, WHERE
from hauberk.core.access import Access
from hauberk.core.errors import DataError, ModelError
from hauberk.core.finding import Advice, Evidence, Finding, Gallery, Status, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.stats import mean_interval
from hauberk.core.target import Target
from hauberk.core.threat import Bounds
from hauberk.privacy.inversion import dlg, inverting_gradients
from hauberk.privacy.inversion.first_linear import TAGS
from hauberk.privacy.inversion.metrics import psnr
from hauberk.privacy.inversion.trial import Trial, attempt, scalar_bounds

RECOGNISED = 20.0  # dB: a digit or a face can be told
NEARER = 3.0  # dB, half the squared error: how much nearer than a guess without the gradient a sample must come back
ADVICE = (
    *ADVICE_ON_GRADIENTS,
    Advice("Clip gradients and noise them per sample: find the noise that a budget asks for",
           "hauberk calibrate --epsilon 3 --delta 1e-5 --n 60000 --batch 256 --epochs 20"),
)


@check(
    "privacy/gradient-inversion", pillar="privacy", unit="rate", better="lower", access=Access.GRADIENT, tags=TAGS, advice=ADVICE,
    preset="standard", question="Does a search win back samples from the gradients that they make?",
    paper="Geiping et al. 2020, arXiv:2003.14053; Zhu et al. 2019, arXiv:1906.08935",
)
def gradient_inversion(context: Context) -> Finding:
    """Share of samples brought back to 20 dB, and nearer than a guess: by the angle of gradients, in the end by DLG too."""
    classes = context.need_classes()
    context.need_images()
    trials = context.shared("gradient inversion", lambda target: _try(target, context, classes))
    best = torch.stack([one.close.psnr for one in trials.values()]).amax(0)
    shown = next(iter(trials.values()))
    blind = _guessed(context, shown.x).to(best.device)
    figure = context.rate((best >= RECOGNISED) & (best >= blind + NEARER))
    context.note(f"a small sample ({figure['n']}) and a small search: a longer one, with more starts, wins back no less")
    context.note(
        f"the mean image and plain gray, which need no gradient, reach {float(blind.mean()):.1f} dB: a sample counts where the "
        f"search is {NEARER:g} dB nearer than the better of them"
    )
    context.note("the search runs on the adversary's own copy of the model and asks the target nothing; labels are known to it")
    context.note(WHERE)
    status = Status.WARN if figure["interval"].low > 0.01 else Status.PASS
    evidence: list[Evidence] = [trial_table(name, one) for name, one in trials.items()]
    name, shown = max(trials.items(), key=lambda item: float(item[1].close.psnr.mean()))
    evidence.append(trial_gallery(f"Samples and what {name} made of their gradients", shown, context.data.bounds))
    return context.finding(
        f"who sees the gradient of one sample searches it back to {RECOGNISED:g} dB for {figure['value']:.1%} of {figure['n']} "
        f"samples; mean PSNR {float(best.mean()):.1f} dB",
        threat=THREAT, status=status, evidence=evidence, **figure,
    )


def trial_table(name: str, trial: Trial) -> Table:
    """Return a table with a row per sample: how close, beside its loss and gradient norm; means with intervals come last."""
    close = trial.close
    rows: list[tuple[object, ...]] = [
        (k, int(trial.y[k]), f"{float(close.psnr[k]):.1f}", f"{float(close.ssim[k]):.3f}", f"{float(close.fmse[k]):.1e}",
         f"{float(close.loss[k]):.1e}", f"{float(close.gradient_norm[k]):.1e}")
        for k in range(len(trial.x))
    ]
    psnr, ssim = (mean_interval(one.cpu().numpy()) for one in (close.psnr, close.ssim))
    rows.append((
        "mean [95 %]", "", f"{float(close.psnr.mean()):.1f} [{psnr.low:.1f}, {psnr.high:.1f}]",
        f"{float(close.ssim.mean()):.3f} [{ssim.low:.2f}, {ssim.high:.2f}]", f"{float(close.fmse.mean()):.1e}", "", "",
    ))
    return Table(
        f"Reconstruction by {name}", ("sample", "label", "PSNR in dB", "SSIM", "MSE of the logits", "loss", "gradient norm"), rows
    )


def trial_gallery(title: str, trial: Trial, bounds: Bounds, most: int = 8) -> Gallery:
    """Return samples and reconstructions in turn."""
    pictures = []
    for k in range(min(most, len(trial.x))):
        pictures.append(picture(trial.x[k], f"sample, label {int(trial.y[k])}", bounds=bounds))
        pictures.append(picture(trial.matched[k], f"{float(trial.close.psnr[k]):.0f} dB", bounds=bounds))
    return Gallery(title, pictures)


def _try(target: Target, context: Context, classes: int) -> dict[str, Trial]:
    split = context.data.train if context.data.train is not None and len(context.data.train) else context.data.test
    x, y = split.sample(context.settings.scaled(2, 4, 8), context.seed, "gradient inversion")
    need_logits(target, x[:1], classes)
    bounds = scalar_bounds(context.data.bounds)
    steps = context.settings.scaled(100, 300, 1200)
    try:
        found = {"inverting-gradients": attempt(
            target.module, x, y, inverting_gradients, options={"steps": steps, "bounds": bounds, "seed": context.seed}
        )}
        if context.settings.preset == "thorough":
            found["dlg"] = attempt(
                target.module, x, y, dlg, options={"steps": 100, "restarts": 2, "bounds": bounds, "seed": context.seed}
            )
    except (DataError, ModelError) as error:
        raise NotRun(error.problem) from error
    return found


def _guessed(context: Context, x: torch.Tensor) -> torch.Tensor:
    """Return the PSNR of each sample beside the better of the mean image and plain gray, shape (n,)."""
    others, _ = context.data.test.sample(context.settings.scaled(100, 500, 2000), context.seed, "mean image")
    low, high = scalar_bounds(context.data.bounds)
    guesses = (others.double().mean(0).to(x.device), torch.tensor((low + high) / 2, device=x.device))
    errors = [(x.double() - one).square().flatten(1).mean(1) for one in guesses]
    return torch.stack([psnr(one, high - low) for one in errors]).amax(0)


def need_logits(target: Target, x: torch.Tensor, classes: int) -> None:
    """End as not run for a model that does not return one logit per class: a client's loss is then not known."""
    with torch.no_grad():
        width = target.logits(x).shape[1]
        shape = target.predictor(x).shape
    if target.outputs == "probabilities" or width != classes or tuple(shape) != (len(x), classes):
        raise NotRun("the model does not return one logit per class, from which the loss of a client would follow")
