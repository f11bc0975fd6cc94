"""hauberk inspect: what a model file holds, who signed it, whether it is encrypted, what a scan says. On one screen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hauberk.cli import options
from hauberk.cli.console import command
from hauberk.core.errors import UsageError

if TYPE_CHECKING:
    from hauberk.assets.inspection import Inspection

ROWS = 14


@command
def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A model file of any format.", show_default=False)],
    *,
    key: Annotated[list[str] | None, typer.Option("--key", help="A public key to verify the signature with; repeatable.")] = None,
    policy: Annotated[str, typer.Option(help="A policy to verify the signature with.")] = "",
    signature: Annotated[str, typer.Option(help="The signature; else the one beside the file.")] = "",
    output_format: options.Output = options.Format.TEXT,
    verbose: options.Verbose = False,
) -> None:
    """Show what a model file holds: architecture, tensors, signature, encryption, scan verdict. It is never loaded.

    Exit codes: 0 shown, 2 usage error. To judge a file use scan and verify.
    """
    from hauberk.assets.inspection import inspect_file

    made = inspect_file(file)
    signed = _signature(file, signature, [*(key or ())], policy)
    if output_format is options.Format.JSON:
        typer.echo(json.dumps({**made.to_dict(), "signature": signed}, ensure_ascii=False, indent=1))
    else:
        typer.echo(describe(made, signed, everything=verbose))


def describe(made: Inspection, signed: dict[str, Any], *, everything: bool = False) -> str:
    """Return the look at a file as text of about one screen; `everything` lists all tensors."""
    from hauberk.report.words import line

    types = ", ".join(f"{name} {count:,}" for name, count in made.dtypes.items())
    scan = made.scan.level.words + (f": {made.scan.issues[0].what}" if made.scan.issues else "")
    rows = [
        ("file", f"{made.path}, {made.size:,} bytes"), ("SHA-256", made.digest), ("format", made.format),
        ("encryption", "encrypted; its key is needed to say more" if made.encrypted else "none"), ("signature", signed["words"]),
        ("scan", "not looked into: encrypted" if made.encrypted else scan),
        *(("note", one) for one in made.notes),
    ]
    if made.tensors:
        rows.append(("parameters", f"{made.parameters:,} in {len(made.tensors)} tensors ({types})"))
    lines = [f"{key:<14} {line(value, 300)}" for key, value in rows]
    if made.facts:
        # Apart from what was found: the file chooses these words, and a row of them must not pass for one of ours.
        lines += ["", "the file says of itself"]
        lines += [f"  {line(key, 28):<28} {line(value, 300)}" for key, value in list(made.facts.items())[:8]]
    layers = made.layers()
    if layers:
        source = "classes named in the file" if made.classes else "inferred from names and shapes"
        lines += ["", f"layers ({source})"]
        shown = layers if everything else layers[:ROWS]
        lines += [
            f"  {line(one.place or '(top)', 44):<44} {line(one.kind, 34):<34} {f'×{one.count}' if one.count > 1 else '':>5} "
            f"{one.parameters:>14,}" for one in shown
        ]
        lines += [f"  … and {len(layers) - len(shown)} more kinds of layers (-v)"] if len(shown) < len(layers) else []
    if made.tensors:
        shown_tensors = made.tensors if everything else made.tensors[:8]
        lines += ["", "tensors"]
        for one in shown_tensors:
            lines.append(f"  {line(one.name, 60):<60} {line(one.dtype, 20):<6} {'×'.join(map(str, one.shape)) or 'scalar'}")
        more = len(made.tensors) - len(shown_tensors)
        lines += [f"  … and {more} more (-v)"] if more else []
    return "\n".join(lines)


def _signature(file: str, signature: str, keys: list[str], policy: str) -> dict[str, Any]:
    """Return the state of the signature: none, there but not verified, or what a verification says."""
    from hauberk.assets.signing.sign import signature_path

    place = Path(signature) if signature else signature_path(file)
    if keys and policy:
        raise UsageError("--key and --policy are given", want="one of them")
    if not keys and not policy:
        state = "present" if place.is_file() else "none"
        words = f"{place.name} is there, not verified: give --key or --policy" if place.is_file() else "none beside the file"
        return {"state": state, "words": words}
    from hauberk.assets.signing import read_policy, read_public, verify

    found = verify(
        file, place, keys=[read_public(one) for one in keys], policy=read_policy(policy) if policy else None
    )
    who = found.signer or f"key {found.key[:16]}…"
    words = f"verified: signed by {who} ({found.algorithm})" if found.ok else f"NOT verified: {'; '.join(found.problems)}"
    return {"state": "verified" if found.ok else "not verified", "words": words, **found.to_dict()}
