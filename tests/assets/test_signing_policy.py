"""Policies: who may sign what, and what must be stated."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from hauberk.assets.signing import Label, generate, sign, verify
from hauberk.assets.signing.facts import duration
from hauberk.assets.signing.keys import SigningKey
from hauberk.assets.signing.policy import glob, make_policy, read_policy
from hauberk.assets.signing.sign import signature_path
from hauberk.core.errors import UsageError

NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
RELEASE, INTERN = generate("p256"), generate("ed25519")
SCAN = {"verdict": "safe", "files": 1}


def problems(tmp_path: Path, rule: dict[str, Any], *, key: SigningKey = RELEASE, label: Label | None = None, days: float = 0,
             place: str = "prod/net", **top: Any) -> list[str]:
    model = tmp_path / place
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(b"weights")
    signature_path(model).write_text(sign(model, key, label, now=NOW).to_json())
    keys = top.pop("keys", {"release": {"pem": RELEASE.public.pem().decode()}, "intern": {"pem": INTERN.public.pem().decode()}})
    policy = make_policy({"format": 1, "keys": keys, "rule": [rule], **top}, tmp_path)
    found = verify(model, policy=policy, now=NOW + datetime.timedelta(days=days))
    assert found.ok == (not found.problems)
    return found.problems


def test_who_may_sign_what(tmp_path: Path) -> None:
    rule = {"models": ["net*"], "paths": ["prod/**"], "keys": ["release"]}
    assert problems(tmp_path, rule) == []
    assert "does not let 'intern' sign 'net'" in problems(tmp_path, rule, key=INTERN)[0]
    assert "no rule of the policy" in problems(tmp_path, rule, place="test/net")[0]
    assert "no rule of the policy" in problems(tmp_path, rule, label=Label("other"))[0]
    assert "not trusted here" in problems(tmp_path, rule, key=generate())[0]
    # The first rule that fits decides, even where a later one would let the key sign.
    model = tmp_path / "prod" / "net"
    keys = {"release": {"pem": RELEASE.public.pem().decode()}, "intern": {"pem": INTERN.public.pem().decode()}}
    both = make_policy({"format": 1, "keys": keys, "rule": [rule, {"keys": ["intern"]}]}, tmp_path)
    signature_path(model).write_text(sign(model, INTERN, now=NOW).to_json())
    assert not verify(model, policy=both, now=NOW)


def test_algorithms_ages_and_revocation(tmp_path: Path) -> None:
    rule = {"keys": ["release", "intern"]}
    assert problems(tmp_path, rule, key=INTERN) == []
    assert problems(tmp_path, rule, key=INTERN, algorithms=["p256"]) == ["the policy does not allow ed25519, only p256"]
    assert problems(tmp_path, {**rule, "algorithms": ["ed25519"]}, key=INTERN, algorithms=["p256"]) == []
    assert problems(tmp_path, rule, days=29.9, max_age="30d") == []
    assert "an age of at most 30d" in problems(tmp_path, rule, days=30.1, max_age="30d")[0]
    assert "an age of at most 1d" in problems(tmp_path, {**rule, "max_age": "1d"}, days=2, max_age="30d")[0]
    pem = RELEASE.public.pem().decode()
    only = {"keys": ["release"]}
    assert problems(tmp_path, only, keys={"release": {"pem": pem, "revoked": True}}) == ["the key 'release' is revoked"]
    until = {"release": {"pem": pem, "until": datetime.date(2026, 3, 1)}}
    assert problems(tmp_path, only, keys=until) == []
    assert problems(tmp_path, only, keys=until, days=1) == ["the key 'release' was good until 2026-03-01"]


def test_what_must_be_stated(tmp_path: Path) -> None:
    rule = {"keys": ["release"], "require": ["expiry", "training-data"], "scan": ["safe"], "minimum_version": "2.1"}
    lacking = problems(tmp_path, rule)
    assert lacking == ["the policy asks for statements that are not there: expiry, scan, training-data, version"]
    claims = {"scan": SCAN, "training_data": {"digest": "0" * 64, "files": 1}}
    assert problems(tmp_path, rule, label=Label(version="2.1", expires=duration("9d"), claims=claims)) == []
    old = Label(version="2.0.9", expires=duration("9d"), claims=claims)
    assert "2.1 is the policy's least" in problems(tmp_path, rule, label=old)[0]
    bad = {**claims, "scan": {"verdict": "unknown code", "files": 1}}
    found = problems(tmp_path, rule, label=Label(version="3", expires=duration("9d"), claims=bad))
    assert found == ["the scan's verdict is 'unknown code', and the policy takes safe"]
    private = {"keys": ["release"], "max_epsilon": 3.0}
    assert "not there: privacy" in problems(tmp_path, private)[0]
    for epsilon, fine in ((3.0, True), (3.1, False), (None, False)):
        claim = {"privacy": {"digest": "0" * 64, "epsilon": epsilon}}
        assert (problems(tmp_path, private, label=Label(claims=claim)) == []) == fine


def test_what_a_signature_leaves_out_is_a_problem_unless_the_policy_says_otherwise(tmp_path: Path) -> None:
    model = tmp_path / "m"
    (model / "cache").mkdir(parents=True)
    (model / "w").write_bytes(b"w")
    (model / "cache" / "x").write_bytes(b"x")
    signature_path(model).write_text(sign(model, RELEASE, ignored=["cache"], now=NOW).to_json())
    content = {"format": 1, "keys": {"release": {"pem": RELEASE.public.pem().decode()}}, "rule": [{"keys": ["release"]}]}
    assert "leaves out what is there: cache" in verify(model, policy=make_policy(content, tmp_path), now=NOW).problems[0]
    assert verify(model, policy=make_policy({**content, "uncovered": True}, tmp_path), now=NOW).ok


def test_another_makers_signature_states_nothing(tmp_path: Path) -> None:
    golden = Path(__file__).parent / "openssf"
    model = tmp_path / "single.bin"
    model.write_bytes(b"one")
    content = {"format": 1, "keys": {"they": {"path": str(golden / "key.pub")}}, "rule": [{"keys": ["they"]}]}
    assert verify(model, golden / "single.sig.json", policy=make_policy(content, tmp_path)).ok
    aged = verify(model, golden / "single.sig.json", policy=make_policy({**content, "max_age": "200y"}, tmp_path))
    assert "does not say when it was made" in aged.problems[0]


def test_policies_that_say_what_cannot_be(tmp_path: Path) -> None:
    pem = RELEASE.public.pem().decode()
    good: dict[str, Any] = {"format": 1, "keys": {"a": {"pem": pem}}, "rule": [{"keys": ["a"]}]}
    make_policy(good, tmp_path)
    wrong: list[dict[str, Any]] = [
        {**good, "format": 2}, {**good, "rule": []}, {**good, "keys": {}}, {**good, "rule": [{"keys": ["b"]}]},
        {**good, "rule": [{"keys": []}]}, {**good, "algorithms": ["rsa"]}, {**good, "max_age": "soon"}, {**good, "more": 1},
        {**good, "keys": {"a": {"pem": pem, "path": "x"}}}, {**good, "keys": {"a": {}}},
        {**good, "keys": {"a": {"path": "missing"}}},
        {**good, "keys": {"a": {"pem": pem}, "b": {"pem": pem}}}, {**good, "rule": [{"keys": ["a"], "require": ["luck"]}]},
        {**good, "rule": [{"keys": ["a"], "minimum_version": "v1"}]},
    ]
    for content in wrong:
        with pytest.raises(UsageError):
            make_policy(content, tmp_path)
    place = tmp_path / "policy.toml"
    place.write_text(f'format = 1\n[keys.a]\npem = """{pem}"""\nuntil = 2030-01-01\n[[rule]]\nkeys = ["a"]\nmodels = ["*"]\n')
    assert read_policy(place).base == tmp_path
    place.write_text("format = ")
    with pytest.raises(UsageError, match="no TOML"):
        read_policy(place)
    with pytest.raises(UsageError, match="cannot be read"):
        read_policy(tmp_path / "none.toml")


@pytest.mark.parametrize(("pattern", "text", "fits"), [
    ("*", "a", True), ("*", "a/b", False), ("**", "a/b", True), ("a/**", "a/b/c", True), ("a/**", "ab", False),
    ("**/x", "x", True),
    ("**/x", "a/b/x", True), ("**/x", "ax", False), ("a/*/x", "a/b/x", True), ("a/*/x", "a/b/c/x", False), ("n?t", "net", True),
    ("n?t", "n/t", False), ("net.v[1]", "net.v[1]", True), ("net.v", "netxv", False),
    ("net*", "net\nx", True), ("NET", "net", False),
])
def test_globs(pattern: str, text: str, fits: bool) -> None:
    assert glob(pattern, text) == fits
