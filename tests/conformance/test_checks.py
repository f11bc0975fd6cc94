"""What every check promises, run over the registry: a check joins by being registered."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine
from torch import nn

from hauberk import Access, Data, Finding, Linf, Schedule, Split, Target, fit
from hauberk.checks import engine
from hauberk.checks.context import Context, NotRun, Settings
from hauberk.core import rng
from hauberk.core.card import PRESETS, Card
from hauberk.core.finding import PILLARS, Status
from hauberk.core.threat import Threat
from hauberk.methods import load_methods
from hauberk.report.taxonomy import COLUMNS, MITIGATIONS
from hauberk.report.words import is_share

CARDS = list(load_methods().cards("check"))
ensemble = importlib.import_module("hauberk.robustness.attack.auto_attack")  # the package has a function of that name
CELLS = {slug for column in COLUMNS.values() for slug in column}
MEMOS: dict[str, dict[Any, Any]] = {}
each = pytest.mark.parametrize("card", [pytest.param(card, id=card.name) for card in CARDS])
# Checks that take many seconds even on the smallest model are run again and again by `make test-all` alone.
DEAR = ("robustness/auto-attack",)
each_again = pytest.mark.parametrize(
    "card", [pytest.param(card, id=card.name, marks=[pytest.mark.slow] if card.name in DEAR else []) for card in CARDS]
)


@pytest.fixture(scope="module", autouse=True)
def short_ensemble() -> Iterator[None]:
    """AutoAttack with fewer steps and queries: what a check promises does not depend on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "auto_attack_members", functools.partial(ensemble.auto_attack_members, steps=8, queries=60))
        yield


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the checks are run on."""

    model: nn.Module
    data: Data
    settings: Settings = dataclasses.field(default_factory=Settings)

    def run(self, card: Card, access: Access | None = None, name: str = "") -> Finding:
        """Run one check; with a name, results are shared with the other checks run under that name."""
        target = Target(self.model, access=access, bounds=self.data.bounds)
        return engine.run_check(card, target, self.data, self.settings, MEMOS.setdefault(name, {}) if name else None)


def perceptron(width: int, outputs: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, outputs))


@pytest.fixture(scope="module")
def images(digits: Data, digits_model: nn.Module) -> Scene:
    """A small part of the digits, in two groups."""
    train, test = digits.train.first(240), digits.test.first(120)
    groups = {"half": torch.arange(120) % 2}
    # Ten training samples and ten others: canaries, as far as a check can tell.
    planted = Split(torch.cat([train[0][:10], test[0][:10]]), torch.cat([train[1][:10], test[1][:10]]),
                    {"planted": (torch.arange(20) < 10).long()})
    data = Data(Split(*test, groups), Split(*train), bounds=(0.0, 1.0), classes=10, name="digits", canaries=planted)
    return Scene(digits_model, data)


@pytest.fixture(scope="module")
def table() -> Scene:
    """Wine: 13 named features, scaled to [0, 1], three classes."""
    x, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    scaled = torch.tensor(((x - x.min(0)) / np.ptp(x, axis=0))[order], dtype=torch.float32)
    labels = torch.tensor(y[order])
    train, test = Split(scaled[:110], labels[:110]), Split(scaled[110:], labels[110:], {"half": torch.arange(68) % 2})
    model = perceptron(13, 3)
    fit(model, train, optimizer=torch.optim.Adam(model.parameters(), 1e-2), schedule=Schedule(epochs=30, batch_size=32))
    return Scene(model, Data(test, train, bounds=(0.0, 1.0), feature_names=load_wine().feature_names, name="wine"))


@pytest.fixture(scope="module")
def regression() -> Scene:
    """Diabetes: ten features in [0, 1], one real number to foretell."""
    x, y = load_diabetes(return_X_y=True)
    scaled = torch.tensor((x - x.min(0)) / np.ptp(x, axis=0), dtype=torch.float32)
    goal = torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)
    return Scene(perceptron(10, 1).eval(), Data(Split(scaled[:100], goal[:100]), Split(scaled[100:300], goal[100:300])))


@pytest.fixture(scope="module")
def first_run(images: Scene) -> Callable[[Card], tuple[Finding, bool]]:
    """Each check once, results shared as in an assessment; and whether it looked at the threat."""
    done: dict[str, tuple[Finding, bool]] = {}

    def run(card: Card) -> tuple[Finding, bool]:
        if card.name not in done:
            with _watching_threat() as looked:
                finding = images.run(card, name="images")
            done[card.name] = finding, bool(looked)
        return done[card.name]

    return run


@contextlib.contextmanager
def _watching_threat() -> Iterator[list[bool]]:
    looked: list[bool] = []
    whole, part = Context.threat, Context.threat_in

    def threat(self: Context) -> Threat:
        looked.append(True)
        return whole.fget(self)  # type: ignore[attr-defined]

    def threat_in(self: Context, norm: str) -> Threat:
        looked.append(True)
        return part(self, norm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Context, "threat", property(threat))
        patch.setattr(Context, "threat_in", threat_in)
        yield looked


def _answered(finding: Finding) -> None:
    """It ran, or says why not: never an error."""
    assert finding.status is not Status.ERROR, (finding.reason, finding.notes)
    if finding.status is Status.NOT_RUN:
        assert len(finding.reason) > 10
        assert finding.value is None
    else:
        assert finding.summary.strip()


@each
def test_the_card_is_complete(card: Card) -> None:
    facts = card.facts
    assert facts["pillar"] in PILLARS and card.name.startswith(facts["pillar"] + "/")
    assert re.fullmatch(r"[a-z]+/[a-z0-9-]+", card.name)
    assert card.question.endswith("?") and card.preset in PRESETS
    assert facts["better"] in ("higher", "lower")
    warn, bad = facts["warn"], facts["fail"]
    if warn is not None and bad is not None:
        assert warn >= bad if facts["better"] == "higher" else warn <= bad
    if is_share(facts["unit"]):
        assert all(limit is None or 0 <= limit <= 1 for limit in (warn, bad))
    cells = [tag.split(":", 1)[1] for tag in card.tags if tag.startswith("aisec:")]
    assert set(cells) <= CELLS
    assert cells or any(tag.startswith("trust:") for tag in card.tags), card.tags
    patterns = r"aisec:[a-z-]+|trust:[a-z-]+|atlas:AML\.T\d{4}(\.\d{3})?|owasp:ML(0\d|10)|nist:NISTAML\.\d{2,3}"
    assert [tag for tag in card.tags if not re.fullmatch(patterns, tag)] == []
    assert len(set(card.tags)) == len(card.tags)
    assert facts["advice"] or (warn is None and bad is None), "what can warn says what to do"


@each
def test_the_advice_names_what_exists(card: Card) -> None:
    from typer.main import get_command

    from hauberk.cli.app import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    for advice in card.facts["advice"]:
        assert advice.text and not advice.text.endswith(".")
        assert not advice.mitigation or advice.mitigation in MITIGATIONS
        for word in re.findall(r"\bhauberk (\w+)", advice.command):
            assert word in commands, f"there is no command 'hauberk {word}'"


def test_the_python_in_the_advice_runs_as_printed(digits: Data, fresh_cnn: Callable[..., nn.Module]) -> None:
    import hauberk

    told = {advice.command for card in CARDS for advice in card.facts["advice"] if advice.command}
    snippets = sorted(command for command in told if not command.startswith("hauberk "))
    assert len(snippets) >= 5
    x, y = digits.test.first(64)
    some = digits.train.first(64)
    few = Data(digits.test, Split(*some, {"parity": some[1] % 2}), bounds=digits.bounds)
    deterministic = torch.are_deterministic_algorithms_enabled()
    for command in snippets:
        names = {
            "hauberk": hauberk, "torch": torch, "model": fresh_cnn().eval().requires_grad_(False), "data": few, "x": x, "y": y,
            "threat": hauberk.Linf(0.1), "groups": y % 2,
        }
        if "fit(" in command:
            names["model"] = fresh_cnn()
        try:
            exec(command, names)
        finally:
            torch.use_deterministic_algorithms(deterministic)


@each
def test_the_finding_is_that_of_the_card(card: Card, first_run: Callable[[Card], tuple[Finding, bool]]) -> None:
    finding, looked = first_run(card)
    _answered(finding)
    assert (finding.id, finding.pillar, finding.question) == (card.name, card.facts["pillar"], card.question)
    assert (finding.unit, finding.better, tuple(finding.tags)) == (card.facts["unit"], card.facts["better"], card.tags)
    assert finding.access == ("" if card.access is None else card.access.name)
    if finding.status is Status.NOT_RUN:
        return
    if looked:
        assert finding.threat, "it looked at the threat and does not name it"
    if finding.status in (Status.WARN, Status.FAIL):
        assert finding.advice
    assert min(finding.queries, finding.gradients, finding.seconds) >= 0


@each
def test_every_figure_has_its_n_and_its_interval(card: Card, first_run: Callable[[Card], tuple[Finding, bool]]) -> None:
    finding, _ = first_run(card)
    if finding.value is None:
        return
    assert math.isfinite(finding.value)
    assert finding.n is not None and finding.n >= 1
    if is_share(finding.unit):
        assert 0 <= finding.value <= 1
    if finding.interval is None:
        assert any("interval" in note for note in finding.notes), "no interval, and no note that says why"
    else:
        assert finding.interval.low <= finding.value + 1e-9 and finding.value <= finding.interval.high + 1e-9
        assert 0 < finding.interval.confidence < 1 and finding.interval.method


@each
def test_the_finding_survives_json_and_is_small(card: Card, first_run: Callable[[Card], tuple[Finding, bool]]) -> None:
    finding, _ = first_run(card)
    plain = finding.to_dict()
    text = json.dumps(plain, allow_nan=False, ensure_ascii=False)
    assert len(text.encode()) <= 60_000
    again = Finding.from_dict(json.loads(text))
    assert again.to_dict() == plain
    for evidence in plain["evidence"]:
        if evidence["kind"] == "table":
            assert {len(row) for row in evidence["rows"]} <= {len(evidence["columns"])}
        for series in evidence.get("series", ()):
            assert len(series["x"]) == len(series["y"]) > 0
            assert {len(series["low"]), len(series["high"])} <= {0, len(series["x"])}
        if evidence["kind"] == "heatmap":
            assert [len(row) for row in evidence["values"]] == [len(evidence["columns"])] * len(evidence["rows"])


@dataclasses.dataclass(frozen=True)
class Alone:
    """A run of a check that shares nothing, and what it left behind."""

    finding: Finding
    changed: list[str]
    hooked: list[str]


@pytest.fixture(scope="module")
def run_alone(images: Scene) -> Callable[[Card], Alone]:
    """Each check once, sharing nothing, and with the engine's own isolation off, so that it shows what it does itself."""
    done: dict[str, Alone] = {}

    def run(card: Card) -> Alone:
        if card.name not in done:
            open_rng = SimpleNamespace(isolated=lambda *_: contextlib.nullcontext(), derive_seed=rng.derive_seed)
            before = _fingerprint(images)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(engine, "rng", open_rng)
                finding = images.run(card)
            after = _fingerprint(images)
            hooked = [name for name, part in images.model.named_modules() if part._forward_hooks or part._forward_pre_hooks]
            done[card.name] = Alone(finding, [name for name in before if before[name] != after[name]], hooked)
        return done[card.name]

    return run


@each_again
def test_the_same_seed_gives_the_same_figure_alone_and_among_others(
    card: Card, run_alone: Callable[[Card], Alone], first_run: Callable[[Card], tuple[Finding, bool]]
) -> None:
    finding, _ = first_run(card)
    alone = run_alone(card).finding
    for name in ("status", "value", "n", "interval", "summary", "reason"):
        assert getattr(alone, name) == getattr(finding, name), name
    # What was shared is charged in full to each who used it.
    assert (alone.queries, alone.gradients) == (finding.queries, finding.gradients)


@each_again
def test_the_model_the_data_and_the_global_randomness_stay_as_they_were(
    card: Card, run_alone: Callable[[Card], Alone]
) -> None:
    assert (run_alone(card).changed, run_alone(card).hooked) == ([], [])


def _fingerprint(scene: Scene) -> dict[str, Any]:
    model, data = scene.model, scene.data
    tensors = {**{f"weight {name}": value for name, value in model.state_dict().items()}, "test y": data.test.y}
    tensors.update({f"{role} x": split.x.values for role, split in data.splits().items()})  # type: ignore[attr-defined]
    seen = {name: value.detach().numpy().tobytes() for name, value in tensors.items()}
    return {
        **seen, "modes": [part.training for part in model.modules()],
        "requires_grad": [one.requires_grad for one in model.parameters()],
        "gradients": [one.grad is None for one in model.parameters()],
        "torch": torch.random.get_rng_state().numpy().tobytes(), "numpy": str(np.random.get_state()),
        "python": hash(random.getstate()), "grad mode": torch.is_grad_enabled(), "threads": torch.get_num_threads(),
    }


@each
@pytest.mark.parametrize("access", [Access.LABEL, Access.SCORE])
def test_with_less_access_it_runs_or_says_why_not(card: Card, access: Access, images: Scene) -> None:
    finding = images.run(card, access, name=f"images at {access.name}")
    _answered(finding)
    if card.access is not None and card.access > access:
        assert finding.status is Status.NOT_RUN and access.name in finding.reason


@each_again
def test_without_a_training_split_it_runs_or_says_why_not(card: Card, images: Scene) -> None:
    bare = dataclasses.replace(images, data=Data(Split(images.data.test.x, images.data.test.y), classes=10))
    _answered(bare.run(card, name="no train"))


@each
def test_regression_is_answered_or_refused(card: Card, regression: Scene) -> None:
    _answered(regression.run(card, name="regression"))


@each
def test_tables_are_answered_or_refused(card: Card, table: Scene) -> None:
    finding = table.run(card, name="table")
    _answered(finding)
    json.dumps(finding.to_dict(), allow_nan=False)


@each
def test_a_function_that_answers_labels_alone_is_no_error(card: Card, images: Scene) -> None:
    def labels(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return images.model(x).argmax(1)

    target = Target(labels, bounds=images.data.bounds, outputs="labels")
    _answered(engine.run_check(card, target, images.data, images.settings, MEMOS.setdefault("labels", {})))


@each_again
def test_a_threat_of_no_size_is_no_error(card: Card, images: Scene) -> None:
    still = dataclasses.replace(images, settings=Settings(threats=(Linf(0.0),)))
    _answered(still.run(card, name="no threat"))


def test_there_are_checks_of_every_pillar() -> None:
    assert len(CARDS) >= 25
    assert {card.facts["pillar"] for card in CARDS} == set(PILLARS)


def test_the_suite_sees_a_check_that_breaks_its_promises(images: Scene) -> None:
    """The instruments themselves: a check that misbehaves is seen to."""

    def rude(context: Context) -> Finding:
        """Spoils what it touches."""
        torch.rand(1)
        if not context.threat.eps:
            raise NotRun("the threat has no size at all")
        raise ValueError("broken")

    card = dataclasses.replace(CARDS[0], function=rude)
    before = _fingerprint(images)
    with _watching_threat() as looked, pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "rng", SimpleNamespace(isolated=lambda *_: contextlib.nullcontext(), derive_seed=rng.derive_seed))
        finding = images.run(card)
    after = _fingerprint(images)
    assert looked and finding.status is Status.ERROR and "broken" in finding.reason
    assert [name for name in before if before[name] != after[name]] == ["torch"]
    with pytest.raises(AssertionError):
        _answered(finding)
