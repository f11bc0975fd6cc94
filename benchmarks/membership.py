"""Membership inference on Location-30: every attack, by the number of references, with intervals and CPU seconds.

A perceptron 446-256-30, Adam 1e-3, 40 epochs, batches of 64; 36 models on complementary random halves. The last four are
attacked, the others are references: the first of them in the large table; in the small one, which of them is drawn, many times,
for at few false alarms one choice of four references says little about four references. Needs location30.npz in the folder named
by HAUBERK_DATA (else `../shared/data` beside the checkout).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from harness import alternate, data_folder, ratios, save
from hauberk import Schedule
from hauberk.core.kinds import MembershipScores
from hauberk.core.roc import auc_gain, roc
from hauberk.core.stacked import fit_stacked
from hauberk.privacy import membership as mia
from hauberk.privacy.membership import MembershipReport, References, train_references
from hauberk.privacy.membership.learned import CLASSIFIERS
from hauberk.privacy.membership.references import halves
from hauberk.privacy.membership.signals import asked_once

TARGETS, COUNTS = range(32, 36), (2, 4, 16, 32)
DRAWS, DRAWN = 60, (4, 16)
Attack = Callable[..., MembershipScores]
ALONE: dict[str, Attack] = {
    "gap": mia.gap_membership, "loss": mia.loss_membership, "confidence": mia.confidence_membership,
    "entropy": mia.entropy_membership, "modified entropy": mia.modified_entropy,
    "quantile regression": mia.quantile_regression, "labels under augmentation": mia.augmentation_membership,
    "gradient norm": mia.gradient_norm_membership,
}


def with_references(attack: Attack, **options: object) -> Attack:
    """Return the attack with its options set."""
    return lambda target, members, others, references: attack(target, members, others, references=references, **options)


REFERENCED: dict[str, Attack] = {
    "variance prior": with_references(mia.variance_prior),
    "variance prior, not linked": with_references(mia.variance_prior, linked=False),
    "LiRA online, fixed": with_references(mia.lira),
    "LiRA online, typical": with_references(mia.lira, variance="typical"),
    "LiRA online, per example": with_references(mia.lira, variance="per-example"),
    "LiRA offline, fixed": with_references(mia.lira, online=False),
    "LiRA offline, per example": with_references(mia.lira, online=False, variance="per-example"),
    "RMIA online": with_references(mia.rmia, online=True), "RMIA offline": with_references(mia.rmia),
}
DEAR: dict[str, Attack] = {  # of the first target alone, with 4 references: more of them change little
    "shadow models": with_references(mia.shadow_membership),
    **{f"learned, {name}": with_references(mia.learned_membership, classifier=name) for name in CLASSIFIERS},
}
REPEATED = ("LiRA online, fixed", "LiRA online, typical", "variance prior")
FIRST = ("gradient norm", "quantile regression")  # of the first target alone as well
Runs = list[MembershipScores]


def sides(inside: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return by target which records are members and which are not."""
    return [(inside[t].nonzero()[:, 0].numpy(), (~inside[t]).nonzero()[:, 0].numpy()) for t in TARGETS]


def pairs(runs: Runs) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the scores by target as arrays."""
    return [(one.members.numpy(), one.non_members.numpy()) for one in runs]


def figures(runs: Runs, records: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, object]:
    """Return mean area and rates over targets, with intervals that count a record once however many models it met."""
    curves = [roc(*one) for one in pairs(runs)]
    flat = [(np.zeros(len(a)), np.zeros(len(b))) for a, b in pairs(runs)]
    gain, span = auc_gain(pairs(runs), flat, records)
    pooled = roc(np.concatenate([a for a, _ in pairs(runs)]), np.concatenate([b for _, b in pairs(runs)]))
    rates = {}
    for fpr in (1e-3, 1e-2):
        ends = pooled.tpr_interval(fpr)
        rates[str(fpr)] = [float(np.mean([one.tpr_at(fpr) for one in curves])), ends.low, ends.high]
    return {"auc": [0.5 + gain, 0.5 + span.low, 0.5 + span.high], "tpr": rates}


def cell(one: list[float]) -> str:
    """Return a figure with its interval."""
    return f"{one[0]:.3f} [{one[1]:.3f}, {one[2]:.3f}]"


def attacked(references: References) -> tuple[dict[tuple[str, int], Runs], dict[tuple[str, int], float]]:
    """Run every attack on every target; return the scores, and the CPU seconds of an attack on one target."""
    found: dict[tuple[str, int], Runs] = {}
    spent: dict[tuple[str, int], float] = {}
    x, y = references.x, references.y
    split = {t: ((x[inside], y[inside]), (x[~inside], y[~inside])) for t in TARGETS for inside in [references.inside[t]]}

    def go(name: str, count: int, attack: Attack, targets: range, given: References | None) -> None:
        runs, began = [], time.process_time()
        for t in targets:
            extra = {} if given is None else {"references": given}
            runs.append(attack(references.models[t], *split[t], **extra))
        found[name, count], spent[name, count] = runs, (time.process_time() - began) / len(targets)

    for name, attack in ALONE.items():
        go(name, 0, attack, range(TARGETS.start, TARGETS.start + 1) if name in FIRST else TARGETS, None)
    for count in COUNTS:
        for name, attack in REFERENCED.items():
            go(name, count, attack, TARGETS, references.take(range(count)))
    for name, attack in DEAR.items():
        go(name, 4, attack, range(TARGETS.start, TARGETS.start + 1), references.take(range(4)))
    return found, spent


def over_draws(references: References) -> dict[str, list[list[float]]]:
    """Return, by attack and number, mean and deviation of area and rates over draws of the references, in pairs of halves."""
    x, y = references.x, references.y
    found = {}
    for count in DRAWN:
        chooser, rows = np.random.default_rng(count), {name: [] for name in REPEATED}
        for _ in range(DRAWS):
            chosen = [2 * pair + half for pair in chooser.choice(16, count // 2, replace=False) for half in (0, 1)]
            given = references.take(chosen)
            for name in REPEATED:
                curves = []
                for t in TARGETS:
                    one = references.inside[t]
                    scores = REFERENCED[name](references.models[t], (x[one], y[one]), (x[~one], y[~one]), given)
                    curves.append(roc(scores.members.numpy(), scores.non_members.numpy()))
                rows[name].append(np.mean([[one.auc, one.tpr_at(1e-3), one.tpr_at(1e-2)] for one in curves], 0))
        for name, values in rows.items():
            found[f"{name}, {count}"] = [np.mean(values, 0).tolist(), np.std(values, 0, ddof=1).tolist()]
    return found


def against_a_loop(x: Tensor, y: Tensor) -> dict[str, dict[str, float]]:
    """Return CPU seconds of 36 models x 40 epochs, by a plain loop of torch and side by side, from a small part, in turn."""
    index = [one.nonzero()[:, 0] for one in halves(len(x), 6, seed=0)]

    def made() -> nn.Module:
        return nn.Sequential(nn.Linear(446, 256), nn.ReLU(), nn.Linear(256, 30))

    def loop() -> None:
        model = made()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for rows in index[0][torch.randperm(len(index[0]))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    def stacked() -> None:
        fit_stacked([made() for _ in range(6)], x, y, index, schedule=Schedule(epochs=1, batch_size=64))

    parts = {"loop": 36 * 40, "side by side": 6 * 40}
    seconds = alternate({"loop": loop, "side by side": stacked}, rounds=7)
    return ratios({name: [one * parts[name] for one in times] for name, times in seconds.items()}, "loop")


def main() -> None:
    """Train, attack, write the tables."""
    torch.set_num_threads(1)
    raw = np.load(data_folder("location30.npz") / "location30.npz")
    records = torch.from_numpy(raw["x"]).float(), torch.from_numpy(raw["y"]).long()
    model = nn.Sequential(nn.Linear(446, 256), nn.ReLU(), nn.Linear(256, 30))
    began = time.process_time()
    references = train_references(model, records, count=36, schedule=Schedule(epochs=40, batch_size=64))
    trained = time.process_time() - began
    with asked_once():
        found, spent = attacked(references)
    inside = references.inside[TARGETS.start]
    reports = [
        MembershipReport(
            {f"{name}, {count}": runs[number] for (name, count), runs in found.items() if len(runs) > number},
            {"class": (references.y[references.inside[t]], references.y[~references.inside[t]])},
        ).evidence()
        for number, t in enumerate(TARGETS)
    ]
    whole = time.process_time() - began
    pace = against_a_loop(*records)
    drawn = over_draws(references)
    ids = sides(references.inside)
    right = references.logits.argmax(2) == references.y
    accuracy = float(right[references.inside].double().mean()), float(right[~references.inside].double().mean())
    rows, content = [], {}
    for (name, count), runs in found.items():
        one = figures(runs, ids[: len(runs)])
        content[f"{name}, {count}"] = {**one, "seconds": spent[name, count], "targets": len(runs)}
        rows.append([
            name, str(count), cell(one["auc"]), *(cell(rate) for rate in one["tpr"].values()), f"{spent[name, count]:.2f}",
            str(len(runs)),
        ])
    against, gains = [], {}
    for count in COUNTS:
        for rival in ("LiRA online, fixed", "LiRA online, per example"):
            gain, span = auc_gain(pairs(found["variance prior", count]), pairs(found[rival, count]), ids)
            gains[f"{rival}, {count}"] = [gain, span.low, span.high]
            against.append(f"{count} references, over {rival}: {gain:+.4f} [{span.low:+.4f}, {span.high:+.4f}]")
    save(
        "membership", "Membership inference on Location-30 by attack and reference models",
        {"attacks": content, "gain": gains, "train_seconds": trained, "whole_seconds": whole, "accuracy": accuracy,
         "pace": pace, "draws": drawn},
        ["attack", "references", "AUC", "TPR at .1 % FPR", "TPR at 1 % FPR", "CPU s a target", "targets"], rows,
        [
            f"36 models in {trained:.1f} CPU-s; with all attacks and {len(reports)} reports (of {int(inside.sum())} members",
            f"and {int((~inside).sum())} others) {whole:.1f} CPU-s. Training accuracy {accuracy[0]:.3f}, test {accuracy[1]:.3f}.",
            f"The same 36 models by a plain loop, from parts run in turn: {pace['loop']['seconds']:.1f} CPU-s;",
            f"side by side {pace['side by side']['seconds']:.1f}: {pace['side by side']['ratio']:.2f} of it.",
            "", "Area of the variance prior less that of LiRA on the same records, paired 95 % interval, by record:", "",
            *(f"- {one}" for one in against),
            "", f"Which references are taken, drawn {DRAWS} times: mean (deviation of a draw) of the mean over targets:", "",
            "| attack, references | AUC | TPR at .1 % FPR | TPR at 1 % FPR |", "|---|---|---|---|",
            *(f"| {name} | " + " | ".join(f"{mean:.3f} ({sd:.3f})" for mean, sd in zip(*one, strict=True)) + " |"
              for name, one in drawn.items()),
            "", "Rates are means over targets; their intervals are those of the pooled scores.",
            "Made by `benchmarks/membership.py`.",
        ],
    )


if __name__ == "__main__":
    main()
