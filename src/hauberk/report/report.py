"""Report: the findings of one assessment and what they were made on. Knows nothing of torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hauberk.core.errors import UsageError
from hauberk.core.finding import PILLARS, Finding, Status, plain_values

SCHEMA_VERSION = "1.0"
EXIT_PASS, EXIT_FINDINGS, EXIT_USAGE, EXIT_ERROR = 0, 1, 2, 3


@dataclasses.dataclass(repr=False)
class Report:
    """What an assessment found.

    Arguments:
        findings: in the order of the checks.
        scope: what was assessed: model, data, access, threats, preset, seed, seconds, versions; plain JSON values.
        plan: the plan that was followed, as plain values: written to `plan.lock.toml`.
    """

    findings: Sequence[Finding]
    scope: dict[str, Any] = dataclasses.field(default_factory=dict)
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)

    def verdicts(self) -> dict[str, Status]:
        """Return the worst status of each pillar that has a finding: never an average."""
        worst: dict[str, Status] = {}
        for finding in self.findings:
            seen = worst.get(finding.pillar)
            if seen is None or finding.status.severity > seen.severity:
                worst[finding.pillar] = finding.status
        names = [*PILLARS, *(pillar for pillar in worst if pillar not in PILLARS)]
        return {pillar: worst[pillar] for pillar in names if pillar in worst}

    def counts(self) -> dict[str, int]:
        """Return how many findings have each status."""
        return {status.value: sum(one.status is status for one in self.findings) for status in Status}

    def find(self, name: str) -> Finding:
        """Return the finding of that check. Raises UsageError naming the nearest."""
        from hauberk.core.errors import nearest

        for finding in self.findings:
            if finding.id == name:
                return finding
        raise UsageError(f"the report has no finding '{name}'", fix=nearest(name, [one.id for one in self.findings]))

    def exit_code(self, fail_on: str = "fail") -> int:
        """Return 0 pass, 1 findings at or above `fail_on` (fail, warn, never), 3 a check in error."""
        if any(finding.status is Status.ERROR for finding in self.findings):
            return EXIT_ERROR
        if fail_on == "never":
            return EXIT_PASS
        gate = Status.WARN if fail_on == "warn" else Status.FAIL
        reached = any(finding.status.severity >= gate.severity for finding in self.findings)
        return EXIT_FINDINGS if reached else EXIT_PASS

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "schema_version": SCHEMA_VERSION, "scope": plain_values(self.scope), "plan": plain_values(self.plan),
            "verdicts": {pillar: status.value for pillar, status in self.verdicts().items()},
            "counts": self.counts(), "findings": [finding.to_dict() for finding in self.findings],
        }

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that `to_json` wrote. Raises UsageError for anything else."""
        try:
            plain = json.loads(text)
            version = str(plain["schema_version"])
            findings = [Finding.from_dict(one) for one in plain["findings"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"this is not a report ({type(error).__name__}: {error})", want="a report.json written by hauberk assess"
            ) from error
        if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
            raise UsageError(f"the report has schema {version}", want=f"schema {SCHEMA_VERSION}", fix="Assess again")
        return cls(findings, plain.get("scope", {}), plain.get("plan", {}))

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Return the report in a folder, or in a report.json. Raises UsageError when there is none, or it is unfinished."""
        place = Path(path)
        place = place / "report.json" if place.is_dir() else place
        try:
            return cls.from_json(place.read_text(encoding="utf-8"))
        except OSError as error:
            if place.name == "report.json" and not place.exists() and (place.parent / "findings.jsonl").exists():
                raise UsageError(
                    f"the run in {place.parent} is unfinished: findings.jsonl is there, report.json is not",
                    want="a run that has ended", fix=f"Finish it: the same hauberk assess, with --output {place.parent} --resume",
                ) from error
            raise UsageError(f"{place} cannot be read ({error.strerror})", want="a report folder or its report.json") from error

    def to_html(self, folder: str | Path) -> Path:
        """Write the whole report folder and return the path of its index.html."""
        from hauberk.report.folder import write_folder

        return write_folder(self, Path(folder))

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {word}" for word, count in self.counts().items() if count)
        total = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}"
        return f"Report({total}: {counts})" if counts else "Report(no findings)"

    def _repr_html_(self) -> str:
        from hauberk.report.notebook import report_html

        return report_html(self)
