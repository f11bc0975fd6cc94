"""EncryptedCheckpoint: where `fit` keeps a run, so that neither weights nor optimizer state lie in the open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hauberk.assets.encryption.access import Locks, Openers, as_locks, as_openers
from hauberk.assets.encryption.models import load_encrypted, save_encrypted
from hauberk.assets.encryption.suites import DEFAULT, suite_named
from hauberk.core.errors import UsageError


class EncryptedCheckpoint:
    """A place for checkpoints: `fit(model, data, schedule=Schedule(checkpoint=EncryptedCheckpoint("run.hbke", key)))`.

    A run that finds the file goes on from there: weights, optimizer, losses, the best weights and what callbacks remember. Under
    `torch.distributed` every process reads and the one of rank 0 writes. In a loop of your own call `write` and `read`.

    Arguments:
        path: the encrypted file.
        keys: opens it, and encrypts it: a raw key, a passphrase, an identity, a key service.
        every: epochs between two checkpoints; the last one is always written.
        also: others who may open it, such as recipients.
        cipher: by name.

    Raises:
        UsageError: for keys that cannot both encrypt and open, or options that cannot be used.
    """

    def __init__(
        self, path: str | Path, keys: Openers, *, every: int = 1, also: Locks = (), cipher: str = DEFAULT,
    ) -> None:
        if every < 1:
            raise UsageError(f"every is {every}", want="1 epoch or more")
        self.path, self.every, self.cipher = Path(path), every, suite_named(cipher).name
        self._openers = as_openers(keys)
        own: Any = self._openers
        more: Sequence[Any] = [] if isinstance(also, (list, tuple)) and not also else as_locks(also)
        self._locks = as_locks([*own, *more])

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> dict[str, Any] | None:
        """Return the checkpoint, on the CPU; None where there is none.

        Raises:
            UsageError, ModelError, UnsafeFile: as for `load_encrypted`; and for a file that holds something else.
        """
        if not self.path.exists():
            return None
        held = load_encrypted(self.path, self._openers)
        if not isinstance(held, dict):
            raise UsageError(f"{self.path} holds a {type(held).__name__}", want="a checkpoint", fix="Name another file")
        return held

    def write(self, content: dict[str, Any], *, last: bool = False) -> None:
        """Write a checkpoint over the one before, if its epoch is due or it is the last; other ranks than 0 do nothing.

        Arguments:
            content: plain values and tensors; `epoch` counts those that are done.
            last: whether the run ends here.
        """
        if (last or content.get("epoch", 0) % self.every == 0) and _rank() == 0:
            save_encrypted(content, self.path, self._locks, cipher=self.cipher, content="torch", force=True)


def _rank() -> int:
    from torch import distributed

    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
