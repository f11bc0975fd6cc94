"""Assessing MNIST keeps its memory bounded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quick_assessment_of_mnist_stays_below_two_gigabytes(real_data: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import harness, mnist, pathlib; "
        "harness.HERE = pathlib.Path(sys.argv[2]); mnist.main()"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "benchmarks"), str(tmp_path)], check=True, timeout=880,
        env={**os.environ, "HAUBERK_DATA": str(real_data)},
    )
    result = json.loads((tmp_path / "results" / "mnist.json").read_text())
    assert max(float(row[2]) for row in result["rows"]) <= 2048
    assert result["counts"]["error"] == 0
    assert result["accuracy"] >= 0.97
