"""A job killed three times at random points ends with the bytes of one that was not (the benchmark of a million documents, made small)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_three_kills_lose_and_double_nothing():
    benchmark = Path(__file__).parents[2] / "benchmarks/stream.py"
    command = [sys.executable, str(benchmark), "--only", "kills", "--documents", "30000", "--json"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)
    assert (result["lost"], result["doubled"], result["in_order"], result["same_bytes"]) == (0, 0, True, True)
    assert result["files_left_for_the_last_run"] > 0  # else the kills came too late to show anything
    assert result["documents"] == 30_000
