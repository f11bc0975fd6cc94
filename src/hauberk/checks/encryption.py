"""Whether a model's files lie encrypted where they are kept."""

from __future__ import annotations

import shlex
from pathlib import Path

from hauberk.assets.encryption import describe, is_encrypted
from hauberk.checks.assets import FILE_TAGS
from hauberk.checks.context import Context, NotRun
from hauberk.core.errors import HauberkError
from hauberk.core.finding import Advice, Finding, Status, Table
from hauberk.core.kinds import check


@check(
    "assets/encryption-at-rest", pillar="assets", better="lower", tags=FILE_TAGS,
    question="Are the model's files useless to one who copies them?",
    advice=(
        Advice("Encrypt the file, and load it from memory", "hauberk encrypt FILE --key-file KEY", "AML.M0012"),
    ),
)
def encryption_at_rest(context: Context) -> Finding:
    """How many files lie in the open: for information, unless a gate such as `{ max = 0 }` says that none may."""
    files = [Path(path) for path in context.target.files if Path(path).suffix != ".py"]
    if not context.target.files:
        raise NotRun("the model came from memory, not from a file")
    if not files:
        raise NotRun("the model came from source code alone, and no weights were loaded from a file")
    rows, plain = [], [path for path in files if not is_encrypted(path)]
    for path in files:
        cipher, keys = "", ""
        if path not in plain:
            try:
                told = describe(path)
            except HauberkError as error:
                raise NotRun(f"{path.name} cannot be read ({error.problem})") from error
            cipher, keys = told.cipher, ", ".join(f"{kind} {name}".strip() for kind, name in told.keys)
        rows.append((path.name, "no" if path in plain else "yes", cipher, keys))
    if plain:
        context.note(f"informational; to encrypt it: hauberk encrypt {shlex.quote(plain[0].name)} --key-file KEY")
    context.note("no interval: every file is counted")
    summary = f"{len(plain)} of {len(files)} files lie in the open" if plain else f"all {len(files)} files are encrypted"
    if len(files) == 1:
        summary = "the file lies in the open" if plain else "the file is encrypted"
    return context.finding(
        summary, value=float(len(plain)), n=len(files), status=Status.PASS,
        evidence=(Table("Files", ("file", "encrypted", "cipher", "opened by"), rows),),
    )
