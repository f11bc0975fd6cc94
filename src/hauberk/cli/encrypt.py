"""hauberk encrypt, decrypt, rewrap and recipient: models that are useless when stolen."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli.console import command, remark, say
from hauberk.cli.options import Verbose, not_folder

if TYPE_CHECKING:
    from hauberk.assets.encryption.keys import Passphrase


class CipherName(enum.StrEnum):
    """What the body is encrypted with; all of them are authenticated."""

    AES_GCM = "aes-256-gcm"
    CHACHA = "chacha20-poly1305"
    SM4_GCM = "sm4-gcm"
    AES_CTR = "aes-256-ctr-hmac-sha256"
    AES_CBC = "aes-256-cbc-hmac-sha256"
    SM4_CBC = "sm4-cbc-hmac-sm3"


class RecipientKind(enum.StrEnum):
    """What a recipient's key rests on."""

    HYBRID = "x25519-mlkem768"
    X25519 = "x25519"


_WHO, _NEW = "The key", "Who may open it from now on"
File = Annotated[Path, typer.Argument(help="The encrypted file.")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")]
Ask = Annotated[bool, typer.Option(
    "--passphrase", help="Ask for a passphrase; so it is when no key is named.", rich_help_panel=_WHO,
)]
PhraseFile = Annotated[Path | None, typer.Option(help="The file with the passphrase, on its first line.", rich_help_panel=_WHO)]
PhraseEnv = Annotated[str, typer.Option(help="The environment variable that holds the passphrase.", rich_help_panel=_WHO)]
KeyFile = Annotated[Path | None, typer.Option(help="A file with the key: raw bytes or hexadecimal.", rich_help_panel=_WHO)]
KeyEnv = Annotated[str, typer.Option(help="The environment variable that holds the key, in hexadecimal.", rich_help_panel=_WHO)]
To = Annotated[list[Path] | None, typer.Option(
    "--to", help="The public key (.pub) of one who may open it; repeatable.", rich_help_panel=_WHO,
)]
Secret = Annotated[Path | None, typer.Option(
    "--identity", "-i", help="The secret key that hauberk recipient wrote.", rich_help_panel=_WHO,
)]


@command
def encrypt(
    file: Annotated[Path, typer.Argument(help="The model file. It stays as it is.")], *, output: Output = None, to: To = None,
    passphrase: Ask = False, passphrase_file: PhraseFile = None, passphrase_env: PhraseEnv = "", key_file: KeyFile = None,
    key_env: KeyEnv = "",
    cipher: Annotated[CipherName, typer.Option(help="What it is encrypted with.")] = CipherName.AES_GCM,
    force: Force = False, verbose: Verbose = False,
) -> None:
    """Encrypt a model file for recipients, a passphrase or a key, to FILE.hbke.

    It loads from memory, with no plaintext on disk: hauberk.assets.encryption.load_encrypted. Secrets are asked for, or read from
    files and the environment: nothing secret stands on the command line.
    """
    from hauberk.assets.encryption import Recipient, encrypt_file

    not_folder(file, "a model file")
    keys = [*map(Recipient.read, to or []), *_keys(passphrase_file, passphrase_env, key_file, key_env)]
    if passphrase or not keys:
        keys.append(_asked("Passphrase", "--to, --key-file, --key-env, --passphrase-file or --passphrase-env", confirm=True))
    target = output or file.with_name(f"{file.name}.hbke")
    header = encrypt_file(file, target, keys, cipher=cipher.value, force=force)
    say(f"{target} is written: {header.suite.name}, {_who(header.slots)}")
    remark(f"{file} is still there in the open; delete it once the encrypted file is known to open")


@command
def decrypt(
    file: File, *, output: Annotated[Path | None, typer.Option(
        "--output", "-o", help="Write the plaintext to this file; left out, the file is verified and nothing is written.",
    )] = None,
    identity: Secret = None, passphrase: Ask = False, passphrase_file: PhraseFile = None, passphrase_env: PhraseEnv = "",
    key_file: KeyFile = None, key_env: KeyEnv = "", force: Force = False, verbose: Verbose = False,
) -> None:
    """Verify an encrypted file with its key; with --output, write the plaintext as well.

    To load a model no plaintext is needed: hauberk.assets.encryption.load_encrypted decrypts it in memory.
    """
    from hauberk.assets.encryption import EncryptedReader
    from hauberk.assets.encryption.writing import new_file, write_all

    keys = _openers(identity, passphrase, passphrase_file, passphrase_env, key_file, key_env)
    with EncryptedReader(file, keys) as reader:
        held = f"{reader.size} bytes of {reader.header.content if reader.header.content != 'other' else 'data'}"
        if output is None:
            reader.verify()
            say(f"{file} is whole and authentic: {held}; nothing was written")
            return
        buffer = bytearray(reader.header.chunk)
        with new_file(output, force=force, mode=0o600) as sink:
            while size := reader.readinto(buffer):
                write_all(sink, memoryview(buffer)[:size])
        buffer[:] = bytes(len(buffer))
    say(f"{output} is written: {held}")
    remark(f"{output} is plaintext: whoever reads the disk, or a backup of it, has the model. load_encrypted needs no such file")


@command
def rewrap(
    file: File, *, output: Annotated[Path | None, typer.Option(
        "--output", "-o", help="Another file to write; left out, the file itself is replaced.",
    )] = None,
    identity: Secret = None, passphrase: Ask = False, passphrase_file: PhraseFile = None, passphrase_env: PhraseEnv = "",
    key_file: KeyFile = None, key_env: KeyEnv = "",
    to: Annotated[list[Path] | None, typer.Option(
        "--to", help="The public key (.pub) of one who may open it too; repeatable.", rich_help_panel=_NEW,
    )] = None,
    remove: Annotated[list[str] | None, typer.Option(
        help="Who may no longer: an id, a name, a kind such as passphrase, or * for all that were there.", rich_help_panel=_NEW,
    )] = None,
    new_passphrase: Annotated[bool, typer.Option(
        "--new-passphrase", help="Ask for a passphrase, in place of any that was there.", rich_help_panel=_NEW,
    )] = False,
    new_passphrase_file: Annotated[Path | None, typer.Option(
        help="The file with a passphrase on its first line, in place of any that was there.", rich_help_panel=_NEW,
    )] = None,
    new_key_file: Annotated[Path | None, typer.Option(help="A file with a key that opens it too.", rich_help_panel=_NEW)] = None,
    force: Force = False, verbose: Verbose = False,
) -> None:
    """Change who may open an encrypted file, without encrypting its body again.

    One who was removed still opens old copies, and this one if he kept its data key: against that, decrypt and encrypt anew.
    """
    from hauberk.assets.encryption import Recipient, describe
    from hauberk.assets.encryption import rewrap as change
    from hauberk.core.errors import UsageError

    added: list[Any] = [*map(Recipient.read, to or []), *_keys(new_passphrase_file, "", new_key_file, "")]
    if new_passphrase:
        added.append(_asked("New passphrase", "--new-passphrase-file", confirm=True))
    removed = list(remove or [])
    if not added and not removed:
        raise UsageError("nothing is to be changed", want="--to, --remove, --new-passphrase or --new-key-file")
    if (new_passphrase or new_passphrase_file) and any(kind == "passphrase" for kind, _ in describe(file).keys):
        removed.append("passphrase")
    keys = _openers(identity, passphrase, passphrase_file, passphrase_env, key_file, key_env)
    header = change(file, keys, add=added, remove=removed, output=output, force=force)
    say(f"{output or file} is written: the body as it was, {_who(header.slots)}")


@command
def recipient(
    file: Annotated[Path, typer.Argument(help="The secret key to write; the public one gets the ending .pub.")], *,
    kind: Annotated[RecipientKind, typer.Option(help="What the key rests on.")] = RecipientKind.HYBRID,
    force: Force = False, verbose: Verbose = False,
) -> None:
    """Make a key pair to receive encrypted models with.

    Keep the secret key, readable by you alone; give the .pub to those who send: hauberk encrypt MODEL --to FILE.pub. The default
    kind withstands a quantum computer as well.
    """
    from hauberk.assets.encryption import Identity
    from hauberk.core.errors import UsageError

    not_folder(file, "the name of a file")
    public = file.with_name(f"{file.name}.pub")
    if public.exists() and not force:
        raise UsageError(f"{public} exists already", want="a new name", fix="Use --force to write over it")
    made = Identity.generate(kind.value)
    made.save(file, force=force)
    made.recipient.save(public, force=force)
    made.wipe()
    say(f"{file} and {public} are written: {kind.value} {made.recipient.id}")


def _keys(
    passphrase_file: Path | None, passphrase_env: str, key_file: Path | None, key_env: str, *, opening: bool = False
) -> list[Any]:
    """Return the keys that files and the environment hold; `opening` says that they are to open a file, not to lock one."""
    from hauberk.assets.encryption import key_from_environment, key_from_file
    from hauberk.assets.encryption.keys import line_from_file, passphrase_from, secret_from_environment

    found: list[Any] = []
    if passphrase_file is not None:
        found.append(passphrase_from(line_from_file(passphrase_file), opening=opening))
    if passphrase_env:
        found.append(passphrase_from(secret_from_environment(passphrase_env), opening=opening))
    if key_file is not None:
        found.append(key_from_file(key_file))
    if key_env:
        found.append(key_from_environment(key_env))
    return found


def _openers(
    identity: Path | None, passphrase: bool, passphrase_file: Path | None, passphrase_env: str, key_file: Path | None,
    key_env: str,
) -> list[Any]:
    from hauberk.assets.encryption import Identity

    found: list[Any] = [Identity.read(identity)] if identity is not None else []
    found += _keys(passphrase_file, passphrase_env, key_file, key_env, opening=True)
    if passphrase or not found:
        found.append(_asked("Passphrase", "--identity, --key-file, --key-env, --passphrase-file or --passphrase-env"))
    return found


def _asked(what: str, others: str, *, confirm: bool = False) -> Passphrase:
    from hauberk.assets.encryption.keys import passphrase_from
    from hauberk.core.errors import UsageError

    if not _someone_is_there():
        raise UsageError(
            "no key is named, and nobody is there to be asked for a passphrase", want="a key", fix=f"Name one with {others}"
        )
    given: str = typer.prompt(what, hide_input=True, confirmation_prompt=confirm, err=True)
    return passphrase_from(bytearray(given.encode("utf-8", "surrogateescape")), opening=not confirm)


def _someone_is_there() -> bool:
    return sys.stdin.isatty()


def _who(slots: tuple[dict[str, Any], ...]) -> str:
    from hauberk.assets.encryption.access import name_of

    return "opened by " + ", ".join(f"{slot['kind']} {name_of(slot)}".strip() for slot in slots)
