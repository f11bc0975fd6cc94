"""Signatures of the model's files, and software that is known to be unsafe."""

from __future__ import annotations

from pathlib import Path

from hauberk.assets.advisories import affected, read_advisories
from hauberk.assets.bom import inventory
from hauberk.assets.signing import Policy, Verification, read_policy, read_public, verify
from hauberk.assets.signing.sign import signature_path
from hauberk.checks.context import Context, NotRun
from hauberk.core.finding import Advice, Finding, Status, Table
from hauberk.core.kinds import check

UNMET = Advice("The files are as a key of your policy signed them, but short of what the policy asks: take a model that meets "
               "it, or change the policy", "hauberk verify MODEL --policy policy.toml")
LESS = Advice("Train again with a smaller ε, keep the privacy statement, and sign the model with it",
              "hauberk calibrate --epsilon 3 --delta 1e-5 --n 60000 --batch 256 --epochs 20", "AML.M0007")
# How problems begin that are about what is stated, not about who signed: only these may be mended by another policy.
SHORT = ("the policy asks for ", "the scan's verdict is ", "its version is ", "its privacy statement ", "it was signed on ")


@check(
    "assets/signature", pillar="assets", better="lower",
    question="Are the model's files those that somebody you trust has signed?",
    tags=("aisec:supply-chain-attack", "aisec:model-file-attack", "atlas:AML.T0010.003", "owasp:ML06", "nist:NISTAML.05"),
    advice=(
        Advice("Take the model from its maker again, and its key by another way than the model", "", "AML.M0013"),
        Advice("Sign your own models where they are made", "hauberk sign MODEL --key release.key --tensors --scan", "AML.M0013"),
    ),
)
def signature(context: Context) -> Finding:
    """Each file compared with its signature, by the keys or the policy that the plan names; what is not verified fails."""
    trusted = context.settings.trusted
    if not trusted.keys and not trusted.policy:
        raise NotRun(f'no key or policy was named (plan: [assets] keys = ["maker.pub"]){_beside(context)}')
    files = [path for path in context.target.files if path.suffix != ".py"]
    places = [Path(trusted.signed)] if trusted.signed else files
    if not places:
        raise NotRun("the model came from memory or source code alone: name what was signed (plan: [assets] signed)")
    if trusted.signature and len(places) > 1:
        raise NotRun(f"one signature is named for {len(places)} files: name the folder that it covers (plan: [assets] signed)")
    keys, policy = [read_public(key) for key in trusted.keys], read_policy(trusted.policy) if trusted.policy else None
    found = [
        verify(place, trusted.signature or None, keys=keys, policy=policy)
        if place.exists() else Verification(str(place), "", ["it does not exist"]) for place in places
    ]
    bad = [one for one in found if not one.ok]
    outside = [path.name for path in context.target.files if not any(_covers(place, path) for place in places)]
    if outside:
        context.note(f"no signature covers {', '.join(outside)}")
    for one in found:
        if one.uncovered:
            context.note(f"the signature of {Path(one.path).name} leaves out {', '.join(one.uncovered[:10])}")
    status = Status.FAIL if bad else Status.WARN if outside else Status.PASS
    summary = f"{Path(bad[0].path).name} is not verified: {'; '.join(bad[0].problems)}" if bad else (
        f"{len(found)} of {len(found)} are as {found[0].signer or f'the key {found[0].key[:16]}…'} signed them"
    )
    made = context.finding(summary, value=float(len(bad)), n=len(found), status=status, evidence=[_table(found)])
    if bad and policy is not None and all(_whole(one, policy) for one in bad):
        made.advice = (UNMET, LESS) if any("ε =" in problem for one in bad for problem in one.problems) else (UNMET,)
    return made


@check(
    "assets/known-unsafe", pillar="assets", better="lower",
    question="Is any of the software behind the model in a version that is known to be unsafe?",
    tags=("aisec:dependent-software-attack", "atlas:AML.T0010.001", "owasp:ML06", "nist:NISTAML.05"),
    advice=(
        Advice("Update what is listed, and keep the bill of materials with the model",
               "hauberk bom MODEL --unsafe unsafe.txt --output bom.json", "AML.M0023"),
    ),
)
def known_unsafe(context: Context) -> Finding:
    """The packages of the environment against the list that the plan names; a version that cannot be compared counts."""
    if not context.settings.trusted.unsafe:
        raise NotRun('no list of unsafe versions was named (plan: [assets] unsafe = "unsafe.txt")')
    components, listed = inventory(), read_advisories(context.settings.trusted.unsafe)
    found = affected(components, listed)
    rows = [
        (one.component.name, one.component.version, one.advisory.versions, one.advisory.id, one.advisory.summary) for one in found
    ]
    context.note(f"judged by the {len(listed)} entries of the list alone: what it does not name is not known to be safe")
    unsure = [one.component.name for one in found if not one.certain]
    if unsure:
        context.note(f"versions that cannot be compared count as unsafe: {', '.join(unsure[:10])}")
    names = sorted({one.component.name for one in found})
    summary = f"{len(names)} are in an unsafe version: {', '.join(names[:5])}" if found else (
        f"none of {len(components)} components is in a version that the list names"
    )
    columns = ("name", "version", "unsafe", "id", "what")
    return context.finding(
        summary, value=float(len(names)), n=len(components), status=Status.FAIL if found else Status.PASS,
        evidence=[Table("Unsafe versions", columns, rows[:200])] if rows else [],
    )


def _beside(context: Context) -> str:
    there = [path.name for path in context.target.files if signature_path(path).is_file()]
    return f"; a signature lies beside {there[0]}" if there else ""


def _covers(place: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(place.resolve())


def _whole(one: Verification, policy: Policy) -> bool:
    """Whether a key that may sign did sign these very files, so that only what is stated falls short of the policy."""
    short = one.statement is not None and all(problem.startswith(SHORT) for problem in one.problems)
    return short and verify(one.path, one.signature, keys=policy.trusted()).ok


def _table(found: list[Verification]) -> Table:
    rows = []
    for one in found:
        facts = one.statement.facts if one.statement is not None else None
        rows.append((
            Path(one.path).name, "verified" if one.ok else "not verified", one.signer or one.key[:16], one.algorithm,
            facts.signed if facts is not None else "", (facts.expires or "") if facts is not None else "",
            (facts.version or "") if facts is not None else "",
            facts.scan.verdict if facts is not None and facts.scan is not None else "",
        ))
    return Table("Signatures", ("file", "state", "signer", "algorithm", "signed", "expires", "version", "scan stated"), rows)
