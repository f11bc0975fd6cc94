"""hauberk keygen, sign and verify: who made a model, and whether it is still what was made."""

from __future__ import annotations

import enum
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.console import command, remark, say
from hauberk.core.errors import UsageError

if TYPE_CHECKING:
    from hauberk.assets.signing import Verification

_KEY, _STATED = "The key", "What is stated"


class Algorithm(enum.StrEnum):
    """How signatures are made."""

    P256 = "p256"
    P384 = "p384"
    P521 = "p521"
    ED25519 = "ed25519"
    ML_DSA_44 = "ml-dsa-44"
    ML_DSA_65 = "ml-dsa-65"
    ML_DSA_87 = "ml-dsa-87"


class Content(enum.StrEnum):
    """What is compared."""

    FILES = "files"
    TENSORS = "tensors"


Environment = Annotated[str, typer.Option(help="The environment variable with the passphrase.", rich_help_panel=_KEY)]
File = Annotated[str, typer.Option(help="The file with the passphrase, on its first line.", rich_help_panel=_KEY)]


@command
def keygen(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Writes NAME.key, a secret, and NAME.pub.", show_default=False)],
    *,
    algorithm: Annotated[Algorithm, typer.Option(
        help="p256 is what the OpenSSF's tools take; ml-dsa-65 withstands quantum computers.")] = Algorithm.P256,
    passphrase_env: Environment = "", passphrase_file: File = "",
    no_passphrase: Annotated[bool, typer.Option(
        "--no-passphrase", help="Leave the key in the clear, for whoever gets the file.", rich_help_panel=_KEY)] = False,
    verbose: options.Verbose = False,
) -> None:
    """Make a pair of keys: one to sign models with, and one to give away. Nothing is written over."""
    from hauberk.assets.signing.keys import generate, write_pair

    if no_passphrase and (passphrase_env or passphrase_file):
        raise UsageError("--no-passphrase and a passphrase are given", want="one of them")
    private, public = Path(f"{name}.key"), Path(f"{name}.pub")
    for file in (private, public):
        if file.exists() or file.is_symlink():
            raise UsageError(f"{file} exists", want="a new name: keys are never written over")
    secret = None if no_passphrase else _passphrase(passphrase_env, passphrase_file, confirm=True)()
    key = generate(algorithm.value)
    write_pair(key, private, public, secret)
    if secret is None:
        remark(f"{private} is not encrypted: whoever reads it can sign")
    say(f"{private} and {public} are written: {algorithm.value}, key {key.public.id}")


@command
def sign(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The model: a file or a folder.", show_default=False)],
    *,
    key: Annotated[str, typer.Option("--key", help="The private key.", rich_help_panel=_KEY, show_default=False)],
    passphrase_env: Environment = "", passphrase_file: File = "",
    output: Annotated[str, typer.Option(help="Where the signature goes; else beside the model, with .sig.")] = "",
    name: Annotated[str, typer.Option(help="Of the model; else that of its file or folder.", rich_help_panel=_STATED)] = "",
    version: Annotated[str, typer.Option(
        "--version", help="Of the model: numbers and dots. Verifiers can refuse older ones.", rich_help_panel=_STATED)] = "",
    expires: Annotated[str, typer.Option(
        help="How long it is good, in hours, days, weeks or years: 12h, 90d, 8w, 1y.", rich_help_panel=_STATED)] = "",
    tensors: Annotated[bool, typer.Option(
        "--tensors", help="State a digest of the tensors, which survives a change of format.", rich_help_panel=_STATED)] = False,
    scan: Annotated[bool, typer.Option(
        "--scan", help="Scan the model for code and state the verdict.", rich_help_panel=_STATED)] = False,
    scan_report: Annotated[str, typer.Option(
        help="State the digest of this report with the verdict.", rich_help_panel=_STATED)] = "",
    training_data: Annotated[str, typer.Option(
        help="State the digest of this file or folder.", rich_help_panel=_STATED)] = "",
    privacy_statement: Annotated[str, typer.Option(
        help="State the ε of this privacy statement.", rich_help_panel=_STATED)] = "",
    watermark: Annotated[str, typer.Option(
        help="Commit to the watermark whose secret is in this file.", rich_help_panel=_STATED)] = "",
    ignore: Annotated[list[str] | None, typer.Option(help="A name in the folder to leave out; repeatable.")] = None,
    shard: Annotated[int, typer.Option(
        help="MiB of a stretch: hashes a large file on several cores. 0 hashes whole files.", min=0)] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over a signature that is there.")] = False,
    verbose: options.Verbose = False,
) -> None:
    """Sign a model: digests of all its files, and what is stated of it.

    Exit codes: 0 signed, 2 it cannot be.
    """
    from hauberk.assets.signing import Label, read_private
    from hauberk.assets.signing import sign as make
    from hauberk.assets.signing.facts import duration, version_key
    from hauberk.assets.signing.sign import signature_path
    from hauberk.core.files import refuse_unwritable, write_whole

    place = Path(output) if output else signature_path(path)
    if place.exists() and not force:
        raise UsageError(f"{place} exists", want="a new file", fix="Use --force to sign again, or choose another --output")
    if version:
        version_key(version)
    label = Label(name, version or None, duration(expires) if expires else None)
    if not Path(path).exists():
        raise UsageError(f"{path} does not exist", want="a model: a file or a folder")
    refuse_unwritable(place)
    private = read_private(key, _passphrase(passphrase_env, passphrase_file))
    claims: dict[str, Any] = {}
    if tensors:
        from hauberk.assets.signing.semantic import semantic_digest

        claims["tensors"] = semantic_digest(path)
    if scan or scan_report:
        from hauberk.assets.signing.claims import scan_claim

        claims["scan"] = scan_claim(path, ignored=ignore or (), report=scan_report or None)
        if claims["scan"].verdict != "safe":
            remark(f"the scan's verdict is '{claims['scan'].verdict}': the signature says so")
    if training_data:
        from hauberk.assets.signing.claims import data_claim

        claims["training_data"] = data_claim(training_data)
    if privacy_statement:
        claims["privacy"] = _privacy(privacy_statement)
    if watermark:
        from hauberk.assets.signing.claims import watermark_claim

        claims["watermark"] = watermark_claim(watermark)
    label.claims.update(claims)
    bundle = make(path, private, label, output=place, ignored=ignore or (), shard=shard << 20 or None)
    write_whole(place, bundle.to_json())
    stated = f", with {', '.join(name.replace('_', ' ') for name in claims)}" if claims else ""
    say(f"{place} is written: {private.public.algorithm}, key {private.public.id[:16]}…{stated}")


@command
def verify(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The model: a file or a folder.", show_default=False)],
    *,
    key: Annotated[list[str] | None, typer.Option("--key", help="A public key to trust; repeatable.", show_default=False)] = None,
    policy: Annotated[str, typer.Option(help="Who may sign what: a policy in TOML.", show_default=False)] = "",
    signature: Annotated[str, typer.Option(help="The signature; else the one beside the model.", show_default=False)] = "",
    name: Annotated[str, typer.Option(help="The name that must have been signed.", show_default=False)] = "",
    minimum_version: Annotated[str, typer.Option(help="Refuse versions below this one.", show_default=False)] = "",
    content: Annotated[Content, typer.Option(help="Compare every file, or the tensors in whatever format.")] = Content.FILES,
    output_format: options.Output = options.Format.TEXT, verbose: options.Verbose = False,
) -> None:
    """Verify a model against its signature.

    Exit codes: 0 verified, 1 not verified, 2 usage error.
    """
    from hauberk.assets.signing import Expect, read_policy, read_public
    from hauberk.assets.signing import verify as check

    if bool(key) == bool(policy):
        raise UsageError(
            "--key and --policy are given" if policy else "nobody is trusted", want="--key or --policy",
            fix="Name the maker's public key, --key maker.pub, or a file that says who may sign what, --policy policy.toml",
        )
    found = check(
        path, signature or None, keys=[read_public(one) for one in key or ()], policy=read_policy(policy) if policy else None,
        expect=Expect(name, minimum_version, content.value),
    )
    if output_format is options.Format.JSON:
        told = json.dumps(found.to_dict(), ensure_ascii=False, indent=1)
        typer.echo(told.encode("utf-8", "replace").decode())  # a path may hold bytes that are no character
    else:
        typer.echo(describe(found))
    raise typer.Exit(0 if found.ok else 1)


def describe(found: Verification) -> str:
    """Return a verification as text; what is not verified is not shown as if it were."""
    from hauberk.report.words import line, plural

    rows = []
    statement = found.statement
    if statement is not None:
        facts = statement.facts
        version = f", version {facts.version}" if facts is not None and facts.version else ""
        files = plural(len({one.name for one in statement.resources}), "file")
        rows.append(("model", f"{statement.name}{version}, {files}"))
        rows.append(("SHA-256" if len(statement.resources) == 1 and not statement.shard else "over all", statement.sha256))
        key = f"key {found.key[:16]}…"
        rows.append(("signer", f"{found.signer} ({found.algorithm}, {key})" if found.signer else f"{key} ({found.algorithm})"))
        if facts is not None:
            rows.append(("signed", facts.signed + (f", expires {facts.expires}" if facts.expires else "")))
            for claim, values in facts.claims().items():
                said = ", ".join(f"{part} {value}" for part, value in values.items() if value != "")
                rows.append((claim, said))
        compared = {"files": "every file", "tensors": "tensors alone; other files were not looked at"}
        rows.append(("compared", compared[found.content]))
    if found.uncovered:
        rows.append(("not covered", ", ".join(found.uncovered)))
    lines = [f"{key:<14} {line(value)}" for key, value in rows]
    lines += [f"{'problem':<14} {line(one)}" for one in found.problems]
    verdict = "verified" if found.ok else "NOT verified"
    return "\n".join([*lines, "", f"{verdict}: {line(found.path)}"])


def _privacy(path: str) -> dict[str, Any]:
    from hauberk.assets.files import sha256
    from hauberk.privacy.dp.accounting.statement import read_statement

    made = read_statement(path)
    return {"digest": sha256(path), "epsilon": made.epsilon, "delta": made.delta, "unit": made.unit}


def _passphrase(environment: str, file: str, *, confirm: bool = False) -> Callable[[], bytes]:
    """Return what gives the passphrase when it is asked: from a variable, a file, or the person at the terminal."""
    if environment and file:
        raise UsageError("--passphrase-env and --passphrase-file are given", want="one of them")

    def ask() -> bytes:
        if environment:
            if environment not in os.environ:
                raise UsageError(f"the variable {environment} is not set", want="the passphrase in it")
            return os.environ[environment].encode()
        if file:
            try:
                with Path(file).open("rb") as source:
                    return source.readline(4096).rstrip(b"\r\n")
            except OSError as error:
                problem = f"{file} cannot be read ({error.strerror or error})"
                raise UsageError(problem, want="a file with the passphrase") from error
        if not sys.stdin.isatty():
            raise UsageError(
                "there is no terminal to ask for the passphrase at", want="--passphrase-env or --passphrase-file",
                fix="--no-passphrase leaves a new key in the clear" if confirm else "",
            )
        given: str = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
        return given.encode()

    return ask
