"""A folder of trained reference models, so that a training that was broken off goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from hauberk.core import progress
from hauberk.core.apart import put_weights, weights_of
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.files import refuse_unwritable, write_whole
from hauberk.core.train import Schedule

ABOUT = "references.json"


def about(model: nn.Module, marks: Tensor, schedule: Schedule, lr: float) -> dict[str, Any]:
    """Return what tells one training of references from another: architecture, frozen weights, records, schedule and rate.

    How many models there are is not in it: the first of many are those of few.
    """
    layout = [(name, list(one.shape), str(one.dtype)) for name, one in model.state_dict().items() if isinstance(one, Tensor)]
    kind = hashlib.sha256(f"{type(model).__qualname__} {model!r} {layout}".encode())
    for one in model.parameters():
        if not one.requires_grad:  # kept from the target: another target is another training
            kind.update(one.detach().cpu().double().numpy().tobytes())
    return {
        "model": kind.hexdigest(),
        "records": hashlib.sha256(marks.cpu().contiguous().numpy().tobytes()).hexdigest(),
        "epochs": schedule.epochs, "batch_size": schedule.batch_size, "seed": schedule.seed, "lr": lr,
    }


class Kept:
    """A folder of finished models, by number; a `Shelf` of `fit_stacked`.

    Arguments:
        folder: made where there is none.
        told: from `about`; models of another training are not taken up.

    Raises:
        UsageError: for a folder that cannot be written, or holds the models of another training.
    """

    def __init__(self, folder: Path, told: dict[str, Any]) -> None:
        self.folder, path = folder, folder / ABOUT
        refuse_unwritable(path)
        fix = "Choose another folder, or delete this one"
        if path.exists():
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read ({error})", want="what they were trained on", fix=fix) from error
            known = held if isinstance(held, dict) else {}
            odd = sorted(key for key in {*known, *told} if known.get(key) != told.get(key))
            if odd:
                raise UsageError(
                    f"{folder} holds reference models of another training ({', '.join(odd)} differ)",
                    want="the same model, records and settings, to go on with it", fix=fix,
                )
        elif any(folder.glob("*.safetensors")):
            raise UsageError(f"{folder} holds weights, but not what they were trained on ({ABOUT})", want="a new folder", fix=fix)
        else:
            write_whole(path, json.dumps(told, indent=1) + "\n")
        found = len(list(folder.glob("reference-*.safetensors")))
        if found:
            progress.say(f"going on: {found} reference model{'s' if found > 1 else ''} in {folder}")

    def take(self, number: int, model: nn.Module) -> bool:
        """Give the model the weights kept under the number, and evaluation mode; return whether there are any.

        Raises:
            DataError: for a file that is broken, or holds other weights.
        """
        path = self._path(number)
        if not path.exists():
            return False
        try:
            weights = safetensors.torch.load(path.read_bytes())
            if not all(bool(one.isfinite().all()) for one in weights.values()):
                raise ModelError("a weight is not finite")
            put_weights(model, weights)
        except (OSError, safetensors.SafetensorError, ModelError) as error:
            raise DataError(
                f"{path} cannot be read ({error})", want="a finished reference model", fix="Delete it, and it is trained again"
            ) from error
        model.eval()
        return True

    def keep(self, number: int, model: nn.Module) -> None:
        """Keep the weights of a model."""
        write_whole(self._path(number), safetensors.torch.save(weights_of(model)))
        progress.finished(f"reference model {number}")

    def _path(self, number: int) -> Path:
        return self.folder / f"reference-{number:03}.safetensors"
