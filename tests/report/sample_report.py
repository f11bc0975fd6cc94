"""A report made up for tests: thirty findings of every status, with every kind of evidence, as one of digits has them."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
import random
from pathlib import Path

from PIL import Image

from hauberk.core.finding import Curve, Evidence, Finding, Gallery, Heatmap, Picture, Series, Table
from hauberk.report.report import Report


def report() -> Report:
    """The whole report."""
    model = {
        "name": "digits CNN", "path": "model.py:build", "weights": "weights.safetensors", "sha256": "9f2c" * 16,
        "parameters": 37_706, "outputs": "logits",
    }
    data = {
        "name": "digits", "test": 500, "train": 1297, "shape": [1, 8, 8], "classes": 10, "bounds": [0.0, 1.0],
        "sha256": "71ab" * 16,
    }
    scope = {
        "model": model, "data": data, "access": "GRADIENT", "threats": ["Linf, eps 0.1, untargeted, inputs in [0, 1]"],
        "preset": "quick", "seed": 0, "seconds": 73.2,
        "versions": {"hauberk": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.6"},
        "notices": ["the model returns probabilities where logits were expected: their logarithms are used"],
    }
    plan = {
        "hauberk": "0.1.0", "model": {"path": "model.py:build", "weights": "weights.safetensors", "access": "gradient"},
        "data": {"test": "sklearn:digits", "bounds": [0, 1]}, "threat": {"norm": "linf", "eps": [0.02, 0.05, 0.1]},
        "run": {"preset": "quick", "seed": 0}, "gate": {"robustness/pgd-linf": {"min": 0.4}},
    }
    return Report(findings(), scope, plan)


def findings() -> list[Finding]:
    """The findings of findings.jsonl, with their evidence."""
    shown: dict[str, list[Evidence]] = {
        "robustness/pgd-linf": [curve(), attacks(), gallery()], "robustness/corruptions": [heatmap()],
        "robustness/masking": [alarms()], "integrity/bit-flips": [flips()], "privacy/membership-loss": [roc()],
        "assets/inventory": [inventory()], "assets/extraction": [fidelity()], "trust/calibration": [reliability(), scores()],
    }
    rows = (Path(__file__).parent / "findings.jsonl").read_text(encoding="utf-8").splitlines()
    made = [Finding.from_dict(json.loads(row)) for row in rows]
    return [dataclasses.replace(one, evidence=shown.get(one.id, [])) for one in made]


def png(seed: int, side: int = 64) -> str:
    """A PNG of noise, base64; noise does not compress."""
    draw = random.Random(seed)
    buffer = io.BytesIO()
    Image.frombytes("L", (side, side), draw.randbytes(side * side)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def gallery(count: int = 6, side: int = 64) -> Gallery:
    """Pictures with captions."""
    pictures = [Picture(png(at, side), f"{at % 10} taken for {(at + 3) % 10}, Linf 0.08") for at in range(count)]
    return Gallery("The smallest changes that fool it", pictures)


def curve() -> Curve:
    """Accuracy over eps, three lines with Wilson bands."""
    eps = [0.0, 0.02, 0.05, 0.1, 0.2]
    lines = {
        "PGD": [0.988, 0.988, 0.912, 0.661, 0.035], "Square": [0.988, 0.988, 0.924, 0.684, 0.055],
        "worst case": [0.988, 0.986, 0.905, 0.64, 0.02],
    }
    series = [Series(name, eps, ys, *zip(*(band(y) for y in ys), strict=True)) for name, ys in lines.items()]
    return Curve("Accuracy left as the adversary gains room", "radius (Linf)", "accuracy", series)


def band(rate: float, n: int = 500) -> tuple[float, float]:
    """Wilson's interval, written out."""
    z = 1.96
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def roc() -> Curve:
    """A ROC on log axes, 121 points a line."""
    x = [10 ** (-3 + 3 * at / 120) for at in range(121)]
    lines = [Series(name, x, [min(1.0, one**power) for one in x]) for name, power in (("loss", 0.72), ("entropy", 0.85))]
    return Curve("Members told from strangers", "false-positive rate", "true-positive rate", lines, True, True, True)


def heatmap() -> Heatmap:
    """Accuracy by corruption and severity."""
    names = ["gaussian noise", "shot noise", "motion blur", "defocus blur", "brightness", "contrast", "rotation", "jpeg"]
    values = [[max(0.08, 0.985 - 0.035 * row * level - 0.01 * level) for level in range(1, 6)] for row in range(8)]
    return Heatmap("Accuracy under corruption, by severity", names, ["1", "2", "3", "4", "5"], values)


def attacks() -> Table:
    """One row per attack."""
    rows = [
        ["PGD-40", 0.661, 0.339, 31_000, 3.9], ["FGSM", 0.792, 0.208, 1_000, 0.1], ["Square-300", 0.684, 0.316, 433_000, 12.0],
        ["transfer", 0.853, 0.147, 500, 2.2],
    ]
    return Table("Attacks side by side", ["attack", "accuracy left", "success rate", "queries", "seconds"], rows)


def alarms() -> Table:
    """Words, truth values, figures and a gap."""
    rows = [
        ["black box beats white box", False, -0.02], ["accuracy left at unbounded radius", False, 0.0],
        ["no gain with more steps", True, 0.11], ["gradients vanish", False, None],
    ]
    return Table("Alarms", ["sign", "raised", "figure"], rows)


def flips() -> Curve:
    """One line over a log axis."""
    low, high = [0.98, 0.95, 0.7, 0.1], [0.99, 0.985, 0.837, 0.17]
    line = Series("random bits", [1e-6, 1e-5, 1e-4, 1e-3], [0.986, 0.97, 0.775, 0.13], low, high)
    return Curve("Accuracy as bits flip", "share of bits flipped", "accuracy", [line], log_x=True)


def inventory() -> Table:
    """More rows than a page shows."""
    rows = [[f"package-{at}", f"{at}.1.0", "Apache-2.0"] for at in range(60)]
    return Table("Inventory", ["package", "version", "licence"], rows)


def fidelity() -> Curve:
    """Fidelity of a copy over queries."""
    line = Series("copy", [50, 100, 250, 500, 1000], [0.61, 0.74, 0.86, 0.905, 0.932])
    return Curve("Fidelity of the copy", "queries", "agreement", [line], log_x=True)


def reliability() -> Curve:
    """A reliability diagram."""
    line = Series("digits", [0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95], [0.5, 0.4, 0.71, 0.75, 0.82, 0.93, 0.99])
    return Curve("Reliability", "confidence", "accuracy", [line], diagonal=True)


def scores() -> Table:
    """Two columns."""
    return Table("Scores", ["score", "value"], [["ECE", 0.041], ["adaptive ECE", 0.038], ["Brier", 0.0213], ["NLL", 0.0671]])
