"""The three lab models that claims about training are judged on together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import headwise as hw
from headwise.claims.experiment import Bench, NotTestable

FIRST, *OTHERS = MODELS = ("world-6m", "world-6m-seed1", "world-6m-qwen3")  # two seeds of one architecture, and another one


def benches(bench: Bench) -> Iterator[Bench]:
    """A bench for each of the three models; their work lies in folders of their own.

    Args:
        bench: Of the first one, which the result is kept under.

    Raises:
        NotTestable: It is another model's.
    """
    if bench.name != FIRST:
        raise NotTestable(f"the lab models {', '.join(MODELS)} are measured together, under {FIRST}")
    for number, name in enumerate(MODELS):
        def report(done: float, total: float, remark: str, number: int = number, name: str = name) -> None:
            bench.report(number + (min(done / total, 1.0) if total else 0.0), len(MODELS), f"{name}: {remark}")

        yield replace(bench, name=name, load=lambda name=name: hw.load(name), work=bench.work / name, report=report)  # type: ignore[misc]
