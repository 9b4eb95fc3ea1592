"""Shared by the benchmarks: hardware, timing with repeats, output."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the slow references live in tests/


def options(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="names of parts, separated by commas")
    parser.add_argument(
        "--model", default="", help="a real model beside the random one, in place of lab-6m: a name such as smollm2, or a folder"
    )
    return parser.parse_args()


def best_of(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """Median seconds of each function; the functions take turns, so that a slow moment of the machine meets all of them."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for i, function in enumerate(functions):
            started = time.perf_counter()
            function()
            times[i].append(time.perf_counter() - started)
    return [statistics.median(t) for t in times]


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def hardware() -> dict[str, object]:
    import torch

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        "",
    )
    return {
        "cpu": model or platform.processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def show(result: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    width = max(len(key) for key in result)
    for key, value in result.items():
        text = f"{value:.3f}" if isinstance(value, float) else value
        print(f"{key:<{width}}  {text}")
