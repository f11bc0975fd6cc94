"""hauberk bom: the bill of materials of a model, as CycloneDX, and the unsafe versions in it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated

import typer

from hauberk.cli import options
from hauberk.cli.console import command, remark
from hauberk.core.errors import UsageError

_SAID = "What is said of the model"


@command
def bom(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="The model: files or folders.", show_default=False)],
    *,
    output: Annotated[str, typer.Option(help="Where to write the bill; else on stdout.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    unsafe: Annotated[str, typer.Option(
        help="Versions known to be unsafe: lines of package, versions, id, such as torch <2.6 CVE-2025-32434.")] = "",
    packages: Annotated[bool, typer.Option(help="List the packages that are installed here.")] = True,
    name: Annotated[str, typer.Option(help="Else that of the first file.", rich_help_panel=_SAID)] = "",
    version: Annotated[str, typer.Option("--version", help="Of the model.", rich_help_panel=_SAID)] = "",
    license_: Annotated[str, typer.Option("--license", help="SPDX identifier, or a name.", rich_help_panel=_SAID)] = "",
    task: Annotated[str, typer.Option(help="Such as image classification.", rich_help_panel=_SAID)] = "",
    architecture: Annotated[str, typer.Option(help="Such as ResNet-50.", rich_help_panel=_SAID)] = "",
    author: Annotated[str, typer.Option(help="Who made it.", rich_help_panel=_SAID)] = "",
    data: Annotated[list[str] | None, typer.Option(
        "--data", help="A file or folder it was trained on; repeatable.", rich_help_panel=_SAID)] = None,
    time: Annotated[bool, typer.Option(help="State when it was made; without, equal contents make equal bills.")] = True,
    verbose: options.Verbose = False,
) -> None:
    """Write the bill of materials of a model: files, data, software, licences, hashes, unsafe versions (CycloneDX 1.6).

    Exit codes: 0 written, 1 written and a version is known to be unsafe, 2 usage error.
    """
    from hauberk.assets.advisories import affected, read_advisories
    from hauberk.assets.aibom import ModelCard, ai_bom
    from hauberk.assets.bom import inventory
    from hauberk.core.files import write_whole
    from hauberk.report.words import plural

    for place in (*paths, *(data or ())):
        if not Path(place).exists():
            raise UsageError(f"{place} does not exist", want="a file or a folder")
    if output:
        options.new_file(Path(output), force)
    if unsafe and not packages:
        raise UsageError("--unsafe and --no-packages are given", want="the packages to judge")
    listed = read_advisories(unsafe) if unsafe else []
    card = ModelCard(
        name or Path(paths[0]).resolve().name, version, license_, task, architecture, author, tuple(map(Path, data or ()))
    )
    components = inventory() if packages else []
    found = affected(components, listed)
    bill = ai_bom(card, paths, components, unsafe=found, now=datetime.datetime.now(datetime.UTC) if time else None)
    text = json.dumps(bill, ensure_ascii=False, indent=1) + "\n"
    if output:
        write_whole(Path(output), text)
        files = plural(len(bill["metadata"]["component"]["components"]), "file")
        typer.echo(f"{output} is written: {files}, {plural(len(components), 'component')}")
    else:
        typer.echo(text, nl=False)
    for one in found:
        doubt = "" if one.certain else " (its version cannot be compared)"
        remark(f"unsafe: {one.component.name} {one.component.version}: {one.advisory.id} {one.advisory.summary}{doubt}".rstrip())
    raise typer.Exit(1 if found else 0)
