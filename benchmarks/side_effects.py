"""The side effects of defences on MNIST: the table of the study at a size that one core does in a quarter of an hour.

Needs mnist.npz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout). Finished parts are kept in
build/side-effects: a run that was broken off goes on.
"""

from __future__ import annotations

from pathlib import Path

import torch

from harness import save
from hauberk.core.finding import Table
from hauberk.study.effects import side_effects
from hauberk.study.images import read_images
from hauberk.study.settings import HEADLINE, PATH, RADII, Scale, Settings
from hauberk.study.shelf import Shelf
from mnist import folder

SCALE = Scale(
    "side effects", train=2000, plain_epochs=14, epochs=14, attack_steps=7, images=10, iterations=800, seeds=1, over_epochs=1,
    tested=1000, effects=True, references=2, forgets=1000,
)
KEPT = Path(__file__).parent.parent / "build" / "side-effects"


def main() -> None:
    """Train, attack from every side, and write the table."""
    settings = Settings(SCALE, "small-cnn", RADII["gray"], HEADLINE["gray"], PATH["gray"])
    images = read_images(str(folder() / "mnist.npz"), SCALE.train, SCALE.tested, settings.seed)
    found = side_effects(settings, Shelf(KEPT, settings.fingerprint()), images)
    table = found.evidence[0]
    assert isinstance(table, Table)
    columns = [str(one) for one in table.columns]
    rows = [[str(cell) for cell in row] for row in table.rows]
    content = {"rows": [dict(zip(columns, row, strict=True)) for row in rows], "threat": found.threat, "notes": list(found.notes)}
    about = (
        f"SmallCNN, {SCALE.forgets} members, {SCALE.plain_epochs} epochs of batches of 64 (DP-SGD: as many steps of batches of "
        f"256), adversaries of Linf {settings.headline} and {SCALE.attack_steps} steps; {SCALE.images} images inverted "
        f"by {SCALE.iterations} steps."
    )
    notes = [about, "", f"Threat: {found.threat}.", "", *(f"* {note}" for note in found.notes)]
    save("side_effects", "Defences by their side effects, on MNIST", content, columns, rows, notes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
