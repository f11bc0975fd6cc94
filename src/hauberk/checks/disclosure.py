"""What a model's files tell whoever holds them: names, structure, and whether the weights are worth anything."""

from __future__ import annotations

import shlex
from pathlib import Path

from hauberk.assets.encryption import is_encrypted
from hauberk.assets.inspection import Inspection, inspect_file
from hauberk.assets.obfuscate.files import MARK
from hauberk.assets.obfuscate.similarity import words_of
from hauberk.checks.assets import FILE_TAGS
from hauberk.checks.context import Context, NotRun
from hauberk.core.finding import Advice, Finding, Status, Table
from hauberk.core.kinds import check


@check(
    "assets/disclosure", pillar="assets", better="lower", tags=FILE_TAGS, unit="rate",
    question="How much of the model do its files tell by their names alone?",
    advice=(
        Advice("Take the names away, and lock the weights by a key", "hauberk obfuscate FILE --method rename --method lock"),
        Advice("Encrypt the file: then it tells nothing", "hauberk encrypt FILE --key-file KEY", "AML.M0012"),
    ),
)
def disclosure(context: Context) -> Finding:
    """Share of the tensors whose names hold words: for information, unless a gate such as `{ max = 0 }` says that none may."""
    files = [Path(path) for path in context.target.files if Path(path).suffix != ".py"]
    if not context.target.files:
        raise NotRun("the model came from memory, not from a file")
    if not files:
        raise NotRun("the model came from source code alone, and no weights were loaded from a file")
    rows, telling, total = [], 0, 0
    for path in files:
        if is_encrypted(path):
            rows.append((path.name, "encrypted", "-", "-", "-"))
            continue
        seen = inspect_file(path)
        for note in seen.notes:
            context.note(f"{path.name}: {note}")
        names = [one.name for one in seen.tensors]
        hits = [name for name in names if words_of(name)]
        telling, total = telling + len(hits), total + len(names)
        layers = f"{len(seen.layers())} kinds of layers, {seen.parameters:,} weights"
        rows.append((path.name, "locked" if _locked(path, seen) else "in the clear", f"{len(hits)} of {len(names)}", layers,
                     ", ".join(hits[:3])))
    if not total and any(row[1] != "encrypted" for row in rows):
        raise NotRun("no tensors could be read from the files; see hauberk inspect")
    if telling:
        name = next(row[0] for row in rows if row[1] != "encrypted")
        context.note(f"informational; to take the names away: hauberk obfuscate {shlex.quote(name)} --names NAMES --output FILE")
    context.note("no interval: every tensor is counted")
    summary = f"{telling} of {total} tensors have names that say what they are"
    if not total:
        summary = "the file is encrypted" if len(rows) == 1 else f"all {len(rows)} files are encrypted"
    return context.finding(
        summary, value=telling / total if total else 0.0, n=total or len(rows), status=Status.PASS,
        evidence=(Table("Files", ("file", "weights", "names with words", "structure", "such as"), rows),),
    )


def _locked(path: Path, seen: Inspection) -> bool:
    """Whether a file says that its weights are under a key of `hauberk obfuscate`."""
    if seen.format == "safetensors":
        import safetensors

        try:
            with safetensors.safe_open(path, "np") as file:
                return MARK in (file.metadata() or {})
        except (OSError, safetensors.SafetensorError):
            return False
    return MARK in seen.facts
