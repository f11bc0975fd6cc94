"""Attribute inference on census and justice records, always beside an imputation that never saw the model.

Needs adult.csv.gz and compas.csv.gz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout).
"""

from __future__ import annotations

import csv
import gzip
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import hauberk
from harness import data_folder, save
from hauberk import Schedule, Split, fit
from hauberk.checks.attributes import sensitive_columns
from hauberk.core.rng import generator, isolated
from hauberk.privacy.inference import (
    AttributeVerdict,
    csmia,
    imputation,
    judge_attributes,
    learned_attribute,
    likelihood_attribute,
)

Pair = tuple[Tensor, Tensor]
TRAINED, ASKED, KNOWN = 3000, 1500, 2000
# Columns that are another one in other words, or have hundreds of values.
LEFT_OUT = {"adult": ("race-sex", "education"), "compas": ("sex-race", "age_cat", "c_charge_desc")}
SETTINGS = {
    "adult": ("income-per-year", ("sex", "race", "marital-status")), "compas": ("two_year_recid", ("sex", "race")),
}


def table(place: Path, name: str) -> hauberk.Data:
    """Return one of the two data sets, its columns scaled to [0, 1]."""
    label, groups = SETTINGS[name]
    with gzip.open(place / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = [column for column in rows[0] if column not in LEFT_OUT[name]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, kept, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return hauberk.load_data(str(path), label=label, groups=groups)


def trained(pair: Pair, epochs: int) -> nn.Module:
    """Return a net trained on the pair."""
    with isolated(0):
        model = nn.Sequential(nn.Linear(pair[0].shape[1], 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    fit(model, Split(*pair), optimizer=optimizer, schedule=Schedule(epochs=epochs, batch_size=64))
    return model


def cell(one: AttributeVerdict) -> list[str]:
    """Return what is told of one verdict."""
    span, right = one.advantage_interval, one.ppv_interval
    return [
        f"{one.accuracy:.1%}", f"{one.baseline:.1%}",
        f"{100 * one.advantage:+.1f} [{100 * span.low:+.1f} to {100 * span.high:+.1f}]",
        f"{one.ppv:.0%} [{right.low:.0%} to {right.high:.0%}]", f"{one.baseline_ppv:.0%}", f"{one.share:.0%}",
    ]


def main() -> None:
    """Train, ask, write the table."""
    torch.set_num_threads(1)
    place = data_folder("adult.csv.gz")
    rows, content = [], {}
    for name in SETTINGS:
        data = table(place, name)
        x, y = data.test.tensors()
        x = (x - x.amin(0)) / (x.amax(0) - x.amin(0)).clamp_min(1e-9)
        order = torch.randperm(len(x), generator=generator(0, "attribute order"))
        parts = order.split([TRAINED, min(KNOWN, len(x) - TRAINED - ASKED), ASKED, len(x) - TRAINED - ASKED - min(
            KNOWN, len(x) - TRAINED - ASKED)])
        members, known, others = ((x[one], y[one]) for one in parts[:3])
        asked = {"training": (members[0][:ASKED], members[1][:ASKED]), "other": others}
        scaled = hauberk.Data(Split(x, y, data.test.groups), classes=2, feature_names=data.feature_names)
        for epochs, called in ((5, "5 epochs"), (150, "150 epochs")):
            model = trained(members, epochs)
            with torch.no_grad():
                fits = [float((model(one[0]).argmax(1) == one[1]).double().mean()) for one in (members, others)]
            told = f"{called} ({fits[0]:.0%} train, {fits[1]:.0%} test)"
            for attribute, sensitive in sensitive_columns(scaled).items():
                for side, (u, v) in asked.items():
                    truth = sensitive.codes(u)
                    base = imputation(u, v, sensitive=sensitive, known=known)
                    attacks = {
                        "CSMIA": csmia(model, u, v, sensitive=sensitive),
                        "likelihood, even prior": likelihood_attribute(model, u, v, sensitive=sensitive),
                        "likelihood, imputation as prior": likelihood_attribute(
                            model, u, v, sensitive=sensitive, prior=base.scores.exp()),
                        "forest that sees the scores": learned_attribute(model, u, v, sensitive=sensitive, known=known),
                    }
                    for attack, found in attacks.items():
                        verdict = judge_attributes(found, base, truth, top=100)
                        rows.append([name, told, f"{attribute} ({len(sensitive)})", side, attack, *cell(verdict)])
                        content["|".join(rows[-1][:5])] = {
                            "accuracy": verdict.accuracy, "baseline": verdict.baseline, "advantage": verdict.advantage,
                            "p": verdict.p, "ppv": verdict.ppv, "baseline ppv": verdict.baseline_ppv,
                        }
                        print(rows[-1], flush=True)
    save(
        "attribute_inference", "Attribute inference beside an imputation that never saw the model", content,
        ["data", "model", "attribute (values)", "records", "attack", "accuracy", "imputation", "advantage, points",
         "right among the surest 100", "imputation's surest", "hold it"], rows,
        [
            f"{ASKED:,} records of each side; models trained on {TRAINED:,}; the adversary knows {KNOWN:,} other records whole",
            "(fewer where there are none left). Imputation: a forest on the other columns and the label. Advantage with its",
            "paired 95 % interval; the surest 100 are of the rarest value that 5 % hold. Made by",
            "`benchmarks/attribute_inference.py`.",
        ],
    )


if __name__ == "__main__":
    main()
