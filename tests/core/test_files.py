"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from hauberk.core.errors import UsageError
from hauberk.core.files import refuse_unwritable, write_whole


def test_text_and_bytes_are_written_with_their_folders(tmp_path):
    write_whole(tmp_path / "a" / "b.txt", "ε ≤ 1")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ε ≤ 1".encode()
    write_whole(tmp_path / "a" / "b.txt", b"\x00\xff")
    assert (tmp_path / "a" / "b.txt").read_bytes() == b"\x00\xff"
    assert [one.name for one in (tmp_path / "a").iterdir()] == ["b.txt"]
    assert (tmp_path / "a" / "b.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
def test_a_disk_that_fills_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    place = tmp_path / "report.json"
    write_whole(place, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(UsageError, match=r"report\.json could not be written \(No space left on device\).*room"):
        write_whole(place, "new" * 1000)
    assert [one.name for one in tmp_path.iterdir()] == ["report.json"] and place.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_device_that_is_full_is_told(tmp_path, monkeypatch):
    real = os.fdopen

    def redirected(handle, mode):
        os.close(handle)
        return real(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr(os, "fdopen", redirected)
    with pytest.raises(UsageError, match="No space left"):
        write_whole(tmp_path / "new.json", "x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_interrupted_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "new.json", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(UsageError, match=r"could not be written.*--output"):
        write_whole(tmp_path / "taken" / "report.json", "x")


def test_a_place_that_nobody_can_write_to_is_refused_before_the_work() -> None:
    place = Path("/proc/nowhere/adv.npz")
    for call in (refuse_unwritable, lambda place: write_whole(place, "x")):
        with pytest.raises(UsageError, match="Expected a place that may be written to") as told:
            call(place)
        assert "space" not in str(told.value)
