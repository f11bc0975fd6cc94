"""Models encrypted at rest: sealed in chunks, opened in memory, for keys, passphrases, recipients and key services."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hauberk.assets.encryption.access import Description as Description
from hauberk.assets.encryption.access import describe as describe
from hauberk.assets.encryption.access import is_encrypted as is_encrypted
from hauberk.assets.encryption.keys import KeyService as KeyService
from hauberk.assets.encryption.keys import Passphrase as Passphrase
from hauberk.assets.encryption.keys import RawKey as RawKey
from hauberk.assets.encryption.keys import key_from_environment as key_from_environment
from hauberk.assets.encryption.keys import key_from_file as key_from_file
from hauberk.assets.encryption.reader import EncryptedReader as EncryptedReader
from hauberk.assets.encryption.recipients import Identity as Identity
from hauberk.assets.encryption.recipients import Recipient as Recipient
from hauberk.assets.encryption.rewrap import encrypt_anew as encrypt_anew
from hauberk.assets.encryption.rewrap import rewrap as rewrap
from hauberk.assets.encryption.writer import EncryptedWriter as EncryptedWriter
from hauberk.assets.encryption.writer import encrypt_file as encrypt_file
from hauberk.assets.encryption.writer import encrypt_stream as encrypt_stream

if TYPE_CHECKING:
    from hauberk.assets.encryption.checkpoints import EncryptedCheckpoint as EncryptedCheckpoint
    from hauberk.assets.encryption.models import load_encrypted as load_encrypted
    from hauberk.assets.encryption.models import open_encrypted as open_encrypted
    from hauberk.assets.encryption.models import save_encrypted as save_encrypted
    from hauberk.assets.encryption.tensors import EncryptedTensors as EncryptedTensors

# These need torch, which the commands that encrypt a file do not wait for.
_HOMES = {
    "EncryptedCheckpoint": "checkpoints", "load_encrypted": "models", "open_encrypted": "models", "save_encrypted": "models",
    "EncryptedTensors": "tensors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
