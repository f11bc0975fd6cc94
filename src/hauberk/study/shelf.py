"""What a study has finished, kept so that it is never done again: models, inversions, figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

import hauberk
from hauberk.core import progress
from hauberk.core.errors import DataError, UsageError
from hauberk.core.files import refuse_unwritable, write_whole
from hauberk.report.words import plural

STUDY = "study.json"
FORMAT = 2  # raise it whenever the same settings would make other parts, or parts are written otherwise


class Shelf:
    """A folder of finished parts.

    Arguments:
        folder: made where there is none.
        settings: what the study is run on; parts of other settings, or made by another version, are not taken up.

    Raises:
        UsageError: for a folder that cannot be written, or holds the parts of another study or another version.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        refuse_unwritable(folder / STUDY)
        plain = {"made by": f"Hauberk {hauberk.__version__}, parts of format {FORMAT}", **json.loads(json.dumps(settings))}
        held = self._read(STUDY)
        if held is not None and held.get("made by") != plain["made by"]:
            raise UsageError(
                f"the parts in {folder} were made by {str(held.get('made by', 'an earlier version'))[:80]}",
                want=f"{plain['made by']}, so that no table mixes what two versions made",
                fix="Choose another --output, or delete the folder to make all parts again",
            )
        if held is not None and held != plain:
            odd = sorted(key for key in {*held, *plain} if held.get(key) != plain.get(key))
            raise UsageError(
                f"{folder} holds a study with other settings ({', '.join(odd)})", want="the same, to go on with it",
                fix="Choose another --output, or delete the folder",
            )
        if held is None and [*folder.glob("*.json"), *folder.glob("*.safetensors")]:
            raise UsageError(
                f"{folder} holds parts of a study, but not its settings ({STUDY})", want="a folder as it was written",
                fix="Choose another --output, or delete the folder",
            )
        if held is None:
            write_whole(folder / STUDY, json.dumps(plain, indent=1) + "\n")
        self._tell()

    def figures(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the figures kept under a name, made and kept where they are not there."""
        held = self._read(f"{name}.json")
        if held is None:
            held = json.loads(json.dumps(make()))
            write_whole(self.folder / f"{name}.json", json.dumps(held, indent=1) + "\n")
            progress.finished(name)
        return held

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors kept under a name, made and kept where they are not there."""
        path = self.folder / f"{name}.safetensors"
        if path.exists():
            try:
                return safetensors.torch.load(path.read_bytes())
            except (OSError, safetensors.SafetensorError) as error:
                raise _broken(path, error) from error
        made = {key: value.detach().cpu().contiguous() for key, value in make().items()}
        write_whole(path, safetensors.torch.save(made))
        return made

    def weights(self, name: str, module: nn.Module, train: Callable[[], None]) -> nn.Module:
        """Return the module with the weights kept under a name, trained and kept where they are not there."""

        def make() -> dict[str, Tensor]:
            train()
            progress.finished(f"training of {name}")
            return module.state_dict()

        try:
            module.load_state_dict(self.tensors(name, make))
        except RuntimeError as error:
            raise _broken(self.folder / f"{name}.safetensors", str(error).splitlines()[0]) from error
        return module.eval()

    def path(self, name: str) -> Path:
        """Return where something else may be kept, such as the checkpoint of a training that is not done."""
        return self.folder / name

    def _tell(self) -> None:
        """Say what is taken up, where something is."""
        parts = {path.name for path in (*self.folder.glob("*.json"), *self.folder.glob("*.safetensors"))} - {STUDY}
        self.taken_up = [f"{plural(len(parts), 'part')} kept from before: the time told is that of the rest"] if parts else []
        broken = any(self.folder.glob("*.checkpoint"))
        if parts or broken:
            half = ", and a training that was broken off" if broken else ""
            progress.say(f"going on: {plural(len(parts), 'finished part')} in {self.folder}{half}")

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _broken(path, error) from error
        if not isinstance(found, dict):
            raise _broken(path, "no table")
        return found


def _broken(path: Path, error: object) -> DataError:
    return DataError(f"{path} cannot be read ({error})", want="a finished part of a study", fix="Delete it, and it is made again")
