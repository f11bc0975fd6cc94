"""Scripts in processes of their own that come up with the libraries of others already loaded, and with nothing of ours."""

from __future__ import annotations

import functools
import multiprocessing
import os
import runpy
import sys
import warnings
from multiprocessing.context import ForkServerContext
from pathlib import Path

# What others wrote: to load it takes four fifths of the time that an example takes to start. Ours is loaded by who needs it.
LIBRARIES = ["numpy", "scipy.stats", "sklearn.datasets", "torch"]


@functools.cache
def _nursery() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def run_script(folder: Path, arguments: list[str], seconds: float) -> tuple[int | None, str]:
    """Run a script in a folder, in a fresh process with warnings as errors; return its exit code and all that it wrote.

    Arguments:
        folder: where it runs.
        arguments: the script, then its arguments.
        seconds: after which it is killed.
    """
    told = folder / f"{arguments[0]}.told"
    process = _nursery().Process(target=_run, args=(str(folder), arguments, str(told)))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode, told.read_text(encoding="utf-8") if told.exists() else ""


def _run(folder: str, arguments: list[str], told: str) -> None:
    ours = [name for name in sys.modules if name.split(".")[0] == "hauberk"]
    assert not ours, f"loaded before the script asked for it: {ours}"
    with open(told, "w", encoding="utf-8") as kept:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(kept.fileno(), stream.fileno())
    os.chdir(folder)
    os.environ.update(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", PYTHONWARNINGS="error")
    warnings.simplefilter("error")
    sys.path.insert(0, folder)
    sys.argv[:] = arguments
    runpy.run_path(arguments[0], run_name="__main__")
