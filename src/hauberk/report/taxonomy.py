"""The attack surface: the 21 techniques of the AISecMatrix, and the mitigations of MITRE ATLAS by name."""

from __future__ import annotations

import dataclasses

from hauberk.core.finding import Finding, Status
from hauberk.report.report import Report

COLUMNS: dict[str, dict[str, str]] = {
    "Environment access": {
        "dependent-software-attack": "Dependent software attack",
        "malicious-access-to-docker": "Malicious access to Docker",
        "hardware-backdoor-attack": "Hardware backdoor attack",
        "supply-chain-attack": "Supply chain attack",
    },
    "Data collection": {"data-poisoning": "Data poisoning", "data-backdoor-attack": "Data backdoor attack"},
    "Model training": {
        "data-recovery-in-gradient": "Data recovery in gradient",
        "initial-weight-modification": "Initial weight modification",
        "code-attack": "Code attack",
        "training-backdoor-attack": "Training backdoor attack",
        "non-centralized-scenarios": "Non-centralized scenarios",
    },
    "Model deployment": {
        "data-recovery-in-the-model": "Data recovery in the model", "model-file-attack": "Model file attack",
    },
    "Model usage": {
        "digital-adversarial-attacks": "Digital adversarial attacks",
        "physical-counter-attack": "Physical counter attack",
        "model-stealing": "Model stealing",
        "overflow-destruction": "GPU/CPU overflow destruction",
    },
    "Model architecture": {
        "query-architecture-stealing": "Query architecture stealing",
        "side-channel-architecture-stealing": "Side channel architecture stealing",
    },
    "Effect of results": {"model-misjudgment": "Model misjudgment", "information-leakage": "Information leakage"},
}

MITIGATIONS = {
    "AML.M0000": "Limit Public Release of Information",
    "AML.M0001": "Limit Model Artifact Release",
    "AML.M0002": "Passive AI Output Obfuscation",
    "AML.M0003": "Model Hardening",
    "AML.M0004": "Restrict Number of AI Model Queries",
    "AML.M0005": "Control Access to AI Models and Data at Rest",
    "AML.M0006": "Use Ensemble Methods",
    "AML.M0007": "Sanitize Training Data",
    "AML.M0008": "Validate AI Model",
    "AML.M0009": "Use Multi-Modal Sensors",
    "AML.M0010": "Input Restoration",
    "AML.M0011": "Restrict Library Loading",
    "AML.M0012": "Encrypt Sensitive Information",
    "AML.M0013": "Code Signing",
    "AML.M0014": "Verify AI Artifacts",
    "AML.M0015": "Adversarial Input Detection",
    "AML.M0016": "Vulnerability Scanning",
    "AML.M0017": "AI Model Distribution Methods",
    "AML.M0018": "User Training",
    "AML.M0019": "Control Access to AI Models and Data in Production",
    "AML.M0020": "Generative AI Guardrails",
    "AML.M0021": "Generative AI Guidelines",
    "AML.M0022": "Generative AI Model Alignment",
    "AML.M0023": "AI Bill of Materials",
    "AML.M0024": "AI Telemetry Logging",
    "AML.M0025": "Maintain AI Dataset Provenance",
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One technique and what the report says of it.

    Arguments:
        slug, title: the technique.
        state: fail, warn, pass, not run (which holds errors too) or not covered.
        findings: the findings that carry its tag, worst first.
    """

    slug: str
    title: str
    state: str
    findings: tuple[Finding, ...]

    @property
    def words(self) -> str:
        """The counts behind the state, such as `1 fail, 3 pass`."""
        order = (Status.ERROR, Status.FAIL, Status.WARN, Status.NOT_RUN, Status.PASS)
        counts = [(sum(one.status is status for one in self.findings), status.value) for status in order]
        return ", ".join(f"{count} {word}" for count, word in counts if count)


def matrix(report: Report) -> dict[str, list[Cell]]:
    """Return the cells of each column of the AISecMatrix.

    A cell fails or warns as the worst of its findings. It passes only when all of them do: where one was not run, or broke, the
    cell is not run.
    """
    return {column: [_cell(report, slug, title) for slug, title in cells.items()] for column, cells in COLUMNS.items()}


def mitigation(identifier: str) -> str:
    """Return an ATLAS mitigation with its name, `AML.M0003 Model Hardening`; one that is not known is returned as it is."""
    name = MITIGATIONS.get(identifier.strip())
    return f"{identifier.strip()} {name}" if name else identifier


def _cell(report: Report, slug: str, title: str) -> Cell:
    tagged = [one for one in report.findings if f"aisec:{slug}" in one.tags]
    tagged.sort(key=lambda one: -one.status.severity)
    seen = {one.status for one in tagged}
    if not tagged:
        state = "not covered"
    elif Status.FAIL in seen:
        state = "fail"
    elif Status.WARN in seen:
        state = "warn"
    elif seen == {Status.PASS}:
        state = "pass"
    else:
        state = "not run"
    return Cell(slug, title, state, tuple(tagged))
