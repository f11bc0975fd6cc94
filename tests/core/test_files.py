"""Files are whole or not there."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hauberk.core import files
from hauberk.core.errors import UsageError
from hauberk.core.files import refuse_unwritable, whole_file, write_whole


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


KILLED = """
import os, signal, sys
from pathlib import Path
from hauberk.core import files
place, ending, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if ending != signal.SIGKILL:
    signal.signal(ending, signal.SIG_DFL)  # under nohup a hang-up is ignored, and nobody is ended
if kind == "named":
    files._unnamed = lambda folder: None
with files.whole_file(place) as file:
    file.write(b"secret" * 100_000)
    file.flush()
    os.kill(os.getpid(), ending)
"""


@pytest.mark.parametrize(("ending", "kind"), [
    (signal.SIGTERM, "unnamed"), (signal.SIGKILL, "unnamed"), (signal.SIGTERM, "named"), (signal.SIGHUP, "named"),
])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="unnamed files are Linux's")
def test_a_process_that_is_ended_leaves_no_half_file(tmp_path, ending, kind):
    place = tmp_path / "weights"
    place.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(place), str(int(ending)), kind], check=False)
    assert done.returncode == -ending
    assert [one.name for one in tmp_path.iterdir()] == ["weights"] and place.read_text() == "old"


def test_while_it_is_written_a_file_has_no_name(tmp_path):
    if files._unnamed(tmp_path) is None:
        pytest.skip("no unnamed files in the folder of the tests")
    for content in (b"first", b"second"):
        before = sorted(tmp_path.iterdir())
        with whole_file(tmp_path / "weights", mode=0o600) as file:
            file.write(content)
            file.flush()
            assert sorted(tmp_path.iterdir()) == before
        assert (tmp_path / "weights").read_bytes() == content
        assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("lacks", ["unnamed files", "links to them", "any links"])
def test_file_systems_that_can_do_less_end_with_the_same_file(tmp_path, monkeypatch, lacks):
    def refused(*_, **__):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    if lacks == "unnamed files":
        monkeypatch.setattr(files, "_unnamed", lambda folder: None)
    else:
        monkeypatch.setattr(*((files, "_link") if lacks == "links to them" else (os, "link")), refused)
    place = tmp_path / "weights"
    for content, replace in ((b"first", False), (b"second" * 10_000, True)):
        with whole_file(place, mode=0o600, replace=replace) as file:
            file.write(content)
        assert place.read_bytes() == content and place.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists already"), whole_file(place, replace=False) as file:
        file.write(b"third")
    assert place.read_bytes() == b"second" * 10_000 and list(tmp_path.iterdir()) == [place]


def test_a_link_in_the_place_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "other").write_text("kept")
    (tmp_path / "link").symlink_to("other")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "other").read_text() == "kept" and not (tmp_path / "link").is_symlink()


def test_handlers_of_others_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_unnamed", lambda folder: None)
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with whole_file(tmp_path / "weights") as file:
            file.write(b"x")
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [1] and (tmp_path / "weights").read_bytes() == b"x"
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with whole_file(tmp_path / "weights"):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
