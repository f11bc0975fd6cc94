"""Signing and verifying: files, folders, expiry, versions, and every way of changing them afterwards."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from hauberk.assets.signing import Expect, Label, Verification, generate, sign, verify
from hauberk.assets.signing.bundle import Bundle, Refused, parse_bundle
from hauberk.assets.signing.digest import hash_files, list_files
from hauberk.assets.signing.dsse import PAYLOAD_TYPE, pae
from hauberk.assets.signing.facts import duration, version_key
from hauberk.assets.signing.keys import SigningKey
from hauberk.assets.signing.sign import signature_path
from hauberk.core.errors import UnsafeFile, UsageError

NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
KEY = generate("ed25519")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"hello")
    (folder / "sub" / "b.txt").write_bytes(b"weights")
    (folder / "sub-c").write_bytes(b"")
    return folder


def signed(model: Path, key: SigningKey = KEY, label: Label | None = None, **more: Any) -> Path:
    place = signature_path(model)
    place.write_text(sign(model, key, label, now=NOW, **more).to_json())
    return place


def check(
    model: Path, *keys: SigningKey, expect: Expect | None = None, days: float = 0, signature: Path | None = None
) -> Verification:
    publics = [key.public for key in keys or (KEY,)]
    return verify(model, signature, keys=publics, expect=expect, now=NOW + datetime.timedelta(days=days))


def test_the_statement_is_that_of_the_format(model: Path) -> None:
    signed(model, label=Label("net", "1.2", datetime.timedelta(days=90)))
    bundle = json.loads(signature_path(model).read_text())
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    key = hashlib.sha256(KEY.public.pem()).hexdigest()
    assert bundle["verificationMaterial"] == {"publicKey": {"hint": key}, "tlogEntries": []}
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    digests = {"a.bin": b"hello", "sub/b.txt": b"weights", "sub-c": b""}
    # Sorted by the parts of the path: the folder `sub` before the file `sub-c`.
    assert [(one["name"], one["digest"]) for one in statement["predicate"]["resources"]] == [
        (name, hashlib.sha256(content).hexdigest()) for name, content in digests.items()
    ]
    root = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in digests.values())).hexdigest()
    assert statement["subject"] == [{"name": "net", "digest": {"sha256": root}}]
    facts = statement["predicate"]["hauberk"]
    assert (facts["signed"], facts["expires"], facts["version"]) == ("2026-03-01T12:00:00Z", "2026-05-30T12:00:00Z", "1.2")
    found = check(model)
    assert found.ok and found.require().name == "net" and found.algorithm == "ed25519"


@pytest.mark.parametrize("shard", [None, 1 << 16])
def test_every_change_of_the_files_is_seen(model: Path, shard: int | None) -> None:
    (model / "a.bin").write_bytes(bytes(200_000))
    signed(model, shard=shard)
    assert check(model).ok
    (model / "a.bin").write_bytes(bytes(199_999) + b"\1")
    assert check(model).problems == ["changed: a.bin"]
    (model / "a.bin").write_bytes(bytes(200_001))
    assert check(model).problems == ["changed: a.bin"]
    (model / "a.bin").write_bytes(b"")
    assert check(model).problems == ["changed: a.bin"]
    (model / "a.bin").unlink()
    assert check(model).problems == ["missing: a.bin"]
    (model / "a.bin").write_bytes(bytes(200_000))
    (model / "sub" / "evil.py").write_bytes(b"")
    assert check(model).problems == ["not signed: sub/evil.py"]
    (model / "sub" / "evil.py").rename(model / "sub" / ".hidden")
    assert check(model).problems == ["not signed: sub/.hidden"]
    (model / "sub" / ".hidden").unlink()
    (model / "sub-c").rename(model / "sub-d")
    assert check(model).problems == ["missing: sub-c", "not signed: sub-d"]
    (model / "sub-d").rename(model / "sub-c")
    assert check(model).ok


def test_swapped_files_are_seen(model: Path) -> None:
    signed(model)
    (model / "a.bin").write_bytes(b"weights")
    (model / "sub" / "b.txt").write_bytes(b"hello")
    assert check(model).problems == ["changed: a.bin, sub/b.txt"]


def test_links_and_devices_are_refused(model: Path, tmp_path: Path) -> None:
    signed(model)
    (model / "a.bin").rename(tmp_path / "outside")
    (model / "a.bin").symlink_to(tmp_path / "outside")
    found = check(model)
    assert not found.ok and "is a link" in found.problems[0]
    with pytest.raises(UnsafeFile, match="is a link"):
        sign(model, KEY)
    (model / "a.bin").unlink()
    os.mkfifo(model / "a.bin")
    with pytest.raises(UnsafeFile, match="no regular file"):
        sign(model, KEY)
    assert not check(model).ok
    link = tmp_path / "link"
    link.symlink_to(model)
    with pytest.raises(UnsafeFile, match="is a link"):
        sign(link, KEY)
    assert not check(link, signature=signature_path(model)).ok


def test_one_file_and_its_signature_beside_it(tmp_path: Path) -> None:
    place = tmp_path / "m.safetensors"
    place.write_bytes(b"x" * 1000)
    assert signed(place) == tmp_path / "m.safetensors.sig" and check(place).ok
    place.write_bytes(b"x" * 999)
    assert check(place).problems == ["changed: m.safetensors"]
    place.unlink()
    place.mkdir()  # a folder is not the file that was signed
    assert not check(place).ok


def test_a_signature_inside_the_folder_is_left_out_and_nothing_else(model: Path) -> None:
    place = model / "model.sig"
    place.write_text(sign(model, KEY, output=place, ignored=["cache/"], now=NOW).to_json())
    (model / ".git").mkdir()
    (model / ".git" / "config").write_text("x")
    found = check(model, signature=place)
    assert found.ok and found.uncovered == []
    (model / "cache").mkdir()
    (model / "cache" / "x").write_text("x")
    assert check(model, signature=place).uncovered == ["cache"]
    elsewhere = model.parent / "moved.sig"
    place.rename(elsewhere)
    place.mkdir()  # what lies now where the signature lay is not covered, and is named
    assert check(model, signature=elsewhere).uncovered == ["cache", "model.sig"]
    for bad in ("../x", "/etc", "."):
        with pytest.raises(UsageError, match="cannot be left out"):
            sign(model, KEY, ignored=[bad])


def test_the_wrong_key_and_a_key_that_lies(model: Path) -> None:
    other = generate("ed25519")
    signed(model, other)
    assert "not trusted here" in check(model).problems[0] and check(model).statement is None
    assert check(model, KEY, other).ok
    bundle = parse_bundle(signature_path(model).read_bytes())
    # The hint is not signed: pointing it at a trusted key does not make the signature that key's.
    signature_path(model).write_text(Bundle(bundle.payload, bundle.signature, KEY.public.id, KEY.public.id).to_json())
    assert "not that of the key" in check(model).problems[0] and check(model).statement is None
    # Without a hint each key is tried, but the statement names its own.
    signature_path(model).write_text(Bundle(bundle.payload, bundle.signature, "", "").to_json())
    assert check(model, other).problems == ["the statement names another key than the one that signed"]
    # Somebody signs another's statement as his own.
    taken = Bundle(bundle.payload, KEY.sign(pae(PAYLOAD_TYPE, bundle.payload)), KEY.public.id, KEY.public.id)
    signature_path(model).write_text(taken.to_json())
    assert check(model).problems == ["the statement names another key than the one that signed"]


def test_expiry_clock_name_and_version(model: Path) -> None:
    signed(model, label=Label("net", "1.10", duration("90d")))
    assert check(model, days=89.9).ok
    assert check(model, days=90).problems == ["the signature expired on 2026-05-30T12:00:00Z"]
    assert check(model, days=-0.003).ok  # 4 minutes: clocks differ
    assert "still to come" in check(model, days=-0.01).problems[0]
    assert check(model, expect=Expect("net", "1.9")).ok and check(model, expect=Expect(minimum_version="1.10.0")).ok
    assert "1.11 is the least" in check(model, expect=Expect(minimum_version="1.11")).problems[0]
    assert "not of 'other'" in check(model, expect=Expect("other")).problems[0]
    signed(model)
    assert "not stated" in check(model, expect=Expect(minimum_version="0")).problems[0]
    assert version_key("1.10") > version_key("1.9.9") and version_key("2.0") == version_key("2")
    for bad in ("v1", "1..2", "1.", ""):
        with pytest.raises(UsageError):
            version_key(bad)
    for text, hours in (("12h", 12), ("2w", 336), ("1y", 8760)):
        assert duration(text) == datetime.timedelta(hours=hours)
    for bad in ("0d", "-1d", "1", "d", "999999y"):
        with pytest.raises(UsageError):
            duration(bad)


def test_what_cannot_be_verified_is_not_verified(model: Path) -> None:
    found = check(model)  # no signature at all
    assert not found and "cannot be read" in found.problems[0]
    with pytest.raises(UnsafeFile, match="is not verified"):
        found.require()
    assert not Verification("x", "y").ok  # not begun
    with pytest.raises(UsageError, match="nobody is trusted"):
        verify(model)
    with pytest.raises(UsageError, match="no zone"):
        verify(model, keys=[KEY.public], now=datetime.datetime(2026, 1, 1))
    with pytest.raises(UsageError, match="does not exist"):
        verify(model / "no", keys=[KEY.public])
    whole = json.loads(signed(model).read_text())
    for change in (lambda made: made["dsseEnvelope"]["signatures"][0], lambda made: made["verificationMaterial"]["publicKey"]):
        broken = json.loads(json.dumps(whole))
        change(broken).update({"keyid": "\ud800"} if "sig" in change(broken) else {"hint": "\ud800"})
        signature_path(model).write_text(json.dumps(broken))
        found = check(model)
        assert not found and json.dumps(found.to_dict(), ensure_ascii=False).encode()  # half a surrogate pair cannot be printed
    (model.parent / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no file"):
        sign(model.parent / "empty", KEY)


def test_every_byte_of_the_bundle_counts(model: Path) -> None:
    key = generate("p256")
    text = signed(model, key, Label("net", "1", duration("1y"))).read_bytes()
    original, place = parse_bundle(text), signature_path(model)
    survived = []
    start, end = text.index(b'"payload"') + 20, text.index(b'"payloadType"') - 20
    for at in range(len(text)):
        if start < at < end and at % 5:
            continue  # the payload is long, and one part of it is like another
        for flip in (1, 32)[: 1 + (at % 4 == 0)]:
            changed = bytearray(text)
            changed[at] ^= flip
            try:
                read = parse_bundle(bytes(changed))
            except Refused:
                continue
            if read == original:
                survived.append(changed[at])  # another way of writing the same JSON
                continue
            place.write_bytes(changed)
            assert not check(model, key).ok, (at, flip)
    assert set(survived) <= set(b" \n\r\t*")
    for end in range(0, len(text) - 2, 97):
        with pytest.raises(Refused):
            parse_bundle(text[:end])


def test_bundles_that_could_be_read_in_two_ways_are_refused(model: Path) -> None:
    text = signed(model).read_text()
    whole = json.loads(text)
    envelope = whole["dsseEnvelope"]
    double = {**whole, "dsseEnvelope": {**envelope, "signatures": envelope["signatures"] * 2}}
    none = {**whole, "dsseEnvelope": {**envelope, "signatures": []}}
    logged = {**whole, "verificationMaterial": {**whole["verificationMaterial"], "tlogEntries": [{}]}}
    certificate = {**whole, "verificationMaterial": {"certificate": {"rawBytes": ""}, "tlogEntries": []}}
    other_type = {**whole, "dsseEnvelope": {**envelope, "payloadType": "text/plain"}}
    twice = text.replace('{"mediaType"', '{"mediaType": "x", "mediaType"', 1)
    loose = {**whole, "dsseEnvelope": {**envelope, "payload": envelope["payload"] + "\n"}}
    more = {**whole, "extra": 1}
    for bad in (double, none, logged, certificate, other_type, loose, more, [], 1, None):
        with pytest.raises(Refused):
            parse_bundle(json.dumps(bad).encode())
    for raw in (twice, "", "[" * 100_000, text.replace('"tlogEntries": []', '"tlogEntries": NaN')):
        with pytest.raises(Refused):
            parse_bundle(raw.encode())


def forged(model: Path, change: Any) -> Verification:
    """Verify what the key itself has signed over a changed statement: the parser, not the signature, has to refuse."""
    statement = json.loads(sign(model, KEY, Label(version="1"), now=NOW).payload)
    change(statement)
    payload = json.dumps(statement).encode()
    made = Bundle(payload, KEY.sign(pae(PAYLOAD_TYPE, payload)), KEY.public.id, KEY.public.id)
    signature_path(model).write_text(made.to_json())
    return check(model)


def test_statements_that_do_not_hold_are_refused(model: Path) -> None:
    assert forged(model, lambda s: None).ok
    assert forged(model, lambda s: s["predicate"].update(later={"x": 1})).ok  # fields of other makers are ignored, as v1.0 asks
    changes = [
        lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
        lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
        lambda s: s["subject"].append(s["subject"][0]), lambda s: s.update(subject=[]),
        lambda s: s["subject"][0]["digest"].update(sha256="0" * 64),
        lambda s: s["predicate"]["resources"].pop(), lambda s: s["predicate"]["resources"].reverse(),
        lambda s: s["predicate"]["resources"][0].update(name="../a.bin"),
        lambda s: s["predicate"]["resources"][0].update(name="/a.bin"),
        lambda s: s["predicate"]["resources"][0].update(name="./a.bin"),
        lambda s: s["predicate"]["resources"][0].update(name=s["predicate"]["resources"][1]["name"]),
        lambda s: s["predicate"]["resources"][0].update(algorithm="md5"),
        lambda s: s["predicate"]["serialization"].update(hash_type="md5"),
        lambda s: s["predicate"]["serialization"].update(method="shards"),
        lambda s: s["predicate"]["hauberk"].update(new="field"),
        lambda s: s["predicate"]["hauberk"].update(format="hauberk-signature/2"),
        lambda s: s["predicate"]["hauberk"].update(signed="yesterday"), lambda s: s["predicate"]["hauberk"].update(version="one"),
        lambda s: s["predicate"]["hauberk"].update(algorithm="p256"), lambda s: s["predicate"]["hauberk"].update(key="0" * 64),
        lambda s: s["predicate"]["hauberk"].update(scan={"verdict": "fine", "files": 1}),
    ]
    for change in changes:
        assert not forged(model, change).ok


def test_what_cannot_be_stated_is_refused_before_it_is_signed(model: Path) -> None:
    digest, step = "0" * 64, "Correct it in the Label given to sign, or leave it out."
    for claims, told in (
        ({"privacy": {"digest": digest, "epsilon": float("nan")}}, "privacy.epsilon is nan. Expected a finite number"),
        ({"scan": {"verdict": "fine", "files": 1}}, "scan.verdict is 'fine'. Expected safe | unknown code |"),
        ({"new": 1}, "new is unknown. Known: algorithm, expires, format"),
        ({"training_data": {"digest": "x", "files": 1}}, "training_data.digest is 'x'. Expected a SHA-256: 64 digits"),
        ({"training_data": {"digest": digest}}, "training_data.files is missing. Expected a whole number of files."),
        ({"key": digest[1:]}, f"key is '{digest[:56]}…"),
        ({"watermark": "x"}, "watermark is 'x'. Expected what watermark_claim returns."),
    ):
        with pytest.raises(UsageError) as error:
            sign(model, KEY, Label(claims=claims))
        said = str(error.value)
        assert said.startswith(f"this cannot be stated: {told}") and said.endswith(step), said
        assert "Input" not in said and "pattern" not in said
    with pytest.raises(UsageError, match=r"version is 'v1'\. Expected numbers and dots, such as 1\.10\.2"):
        sign(model, KEY, Label(version="v1"))


def test_parallel_hashing_gives_the_same(model: Path) -> None:
    for number in range(20):
        (model / f"{number}.bin").write_bytes(bytes([number]) * 300_000)
    files = list_files(model)
    assert hash_files(files, workers=4) == hash_files(files, workers=1)
    spans = hash_files({"x": model / "3.bin"}, shard=1 << 17)
    content = bytes([3]) * 300_000
    assert [one.span for one in spans] == [(0, 131072), (131072, 262144), (262144, 300000)]
    cuts = [content[:131072], content[131072:262144], content[262144:]]
    assert [one.digest for one in spans] == [hashlib.sha256(cut).digest() for cut in cuts]


def test_names_that_are_not_unicode_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "m"
    place.mkdir()
    try:
        Path(os.fsdecode(bytes(place) + b"/\xff")).write_bytes(b"x")
    except OSError:
        pytest.skip("the file system takes Unicode names alone")
    with pytest.raises(UnsafeFile, match="not Unicode"):
        sign(place, KEY)
