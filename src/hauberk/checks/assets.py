"""Model files and the software behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hauberk.assets.bom import cyclonedx, inventory
from hauberk.assets.encryption import is_encrypted
from hauberk.assets.files import sha256
from hauberk.assets.scan import Level, ScanResult, scan_file
from hauberk.checks.context import Context, NotRun
from hauberk.core.finding import Advice, Finding, Status, Table
from hauberk.core.kinds import check

FILE_TAGS = ("aisec:model-file-attack", "aisec:supply-chain-attack", "atlas:AML.T0018.002", "atlas:AML.T0011.000", "owasp:ML06",
             "nist:NISTAML.051")


@check(
    "assets/unsafe-opcodes", pillar="assets", better="lower", tags=FILE_TAGS,
    question="Would opening the model's files run code?",
    advice=(
        Advice("Keep the numbers alone, without running anything in the file", "hauberk convert FILE --safe", "AML.M0014"),
        Advice("Or have the weights alone saved as safetensors where the model comes from", "", "AML.M0014"),
        Advice("Accept signed files from known makers only", "", "AML.M0013"),
    ),
)
def unsafe_opcodes(context: Context) -> Finding:
    """Files that are not safe to open: dangerous and unverifiable ones fail, unknown code warns, listed objects pass."""
    results = _scans(context)
    named = [Path(path).name for path in context.target.files if _is_source(path)]
    if named:
        context.note(f"{', '.join(named)}: source code that you named; it runs when the model is built, and was not judged")
    sealed = [Path(path).name for path in context.target.files if is_encrypted(path)]
    if sealed:
        context.note(f"{', '.join(sealed)}: encrypted, and opened in memory as tensors or ONNX alone; not scanned")
    if not results:
        if sealed:
            raise NotRun(f"{', '.join(sealed)} is encrypted, and opened in memory as tensors or ONNX alone: scan the file before "
                         "it is encrypted (hauberk scan FILE)")
        raise NotRun(f"{', '.join(named)} is source code, and no weights were loaded from a file")
    blocked = [one for one in results if not one.safe]
    worst = max(one.level for one in results)
    status = {Level.SAFE: Status.PASS, Level.FRAMEWORK: Status.PASS, Level.UNKNOWN: Status.WARN}.get(worst, Status.FAIL)
    files = Table("Files", ("file", "format", "verdict", "parts", "names imported", "next step"), [
        (Path(one.path).name, one.format, one.level.words, one.parts, len(one.globals), one.next_step) for one in results
    ])
    issues = [(Path(one.path).name, issue.level.words, issue.where, issue.what) for one in results for issue in one.issues]
    evidence = [files, Table("What was found", ("file", "verdict", "place", "what"), issues[:50])] if issues else [files]
    if len(issues) > 50:
        context.note(f"{len(issues) - 50} further issues are not shown")
    held = sum(one.level is Level.FRAMEWORK for one in results)
    if held:
        context.note(f"{held} of {len(results)} files hold objects of listed frameworks: their code is the library's")
    context.note("files are followed opcode by opcode, never loaded; names not on the list of harmless ones are unknown code")
    summary = f"none of {len(results)} files runs code when it is opened" if not blocked else _blamed(blocked, len(results))
    return context.finding(summary, value=float(len(blocked)), n=len(results), status=status, evidence=evidence)


@check(
    "assets/file-hash", pillar="assets", tags=FILE_TAGS, question="Which files exactly was the model loaded from?",
    advice=(Advice("Keep weights as safetensors, which cannot hold code", "", "AML.M0014"),),
)
def file_hash(context: Context) -> Finding:
    """SHA-256 of each file: to be compared with the maker's, and with the next assessment's."""
    scans = {one.path: one for one in _scans(context)}
    rows = []
    for path in map(Path, _files(context)):
        scan = scans.get(str(path))
        form, code = (scan.format, scan.carries_code) if scan is not None else ("Python source", True)
        form, code = ("encrypted", False) if is_encrypted(path) else (form, code)
        try:
            rows.append((path.name, path.stat().st_size, sha256(path), form, "yes" if code else "no"))
        except OSError as error:
            raise NotRun(f"{path.name} cannot be read ({error.strerror or error})") from error
    carriers = sum(row[-1] == "yes" for row in rows)
    if carriers:
        context.note(f"{carriers} of {len(rows)} files are in a format that can hold code: see assets/unsafe-opcodes")
    first = next((row for row in rows if not _is_source(row[0])), rows[0])  # the model, before code that builds it
    told = f"{first[0]} has SHA-256 {first[2][:16]}…"
    return context.finding(
        told if len(rows) == 1 else f"{len(rows)} files; {told}", n=len(rows), status=Status.PASS,
        evidence=(Table("Files", ("file", "bytes", "SHA-256", "format", "can hold code"), rows),),
    )


@check(
    "assets/inventory", pillar="assets", question="Which software stands behind the model, in which versions?",
    tags=("aisec:dependent-software-attack", "atlas:AML.T0010.001", "owasp:ML06", "nist:NISTAML.05"),
    advice=(Advice("Keep this bill of materials with the model, and check it against advisories",
            "hauberk bom MODEL --unsafe unsafe.txt --output bom.json", "AML.M0023"),),
)
def bill_of_materials(context: Context) -> Finding:
    """An AI bill of materials: every package of the environment, in the terms of CycloneDX."""
    components = inventory()
    bill = cyclonedx(components, model=context.target.name)
    rows = [
        (one.name, one.version, one.license, "hauberk" if one.required_by_us else "model or environment", one.purl)
        for one in components
    ]
    unknown = [one.name for one in components if not one.version]
    if unknown:
        context.note(f"no version is known of: {', '.join(unknown[:10])}")
    context.note("informational: what is installed where the assessment ran; versions are stated, not judged")
    context.note("no interval: every installed package is counted")
    if len(rows) > 200:
        context.note(f"{len(rows) - 200} further packages are counted but not listed")
    packages = sum(one.kind == "package" for one in components)
    columns = ("name", "version", "licence", "asked for by", "purl")
    return context.finding(
        f"{packages} packages are installed beside Python {components[0].version}", value=float(packages), n=packages,
        status=Status.PASS, evidence=(Table(f"{bill['bomFormat']} {bill['specVersion']} components", columns, rows[:200]),),
    )


def _scans(context: Context) -> list[ScanResult]:
    """Return the scans of the files that are data; code that the user named is code, and no scan changes that."""
    files = _files(context)
    open_ = [path for path in files if not _is_source(path) and not is_encrypted(path)]
    return context.shared("file scans", lambda _: [scan_file(path) for path in open_])


def _is_source(path: str | Path) -> bool:
    return Path(path).suffix == ".py"


def _files(context: Context) -> Sequence[Path]:
    if not context.target.files:
        raise NotRun("the model came from memory, not from a file")
    return context.target.files


def _blamed(blocked: Sequence[ScanResult], total: int) -> str:
    worst = max(blocked, key=lambda one: one.level)
    why = f"{worst.level.words}, {worst.issues[0].what}"
    return f"{len(blocked)} of {total} files are not safe to open; {Path(worst.path).name}: {why}"
