"""The three lab models that claims about training are judged on together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import headwise as hw
from headwise.claims.experiment import Bench, NotTestable
from headwise.heads.progress import part

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
        report = part(bench.report, number, len(MODELS), name)
        yield replace(bench, name=name, load=partial(hw.load, name), work=bench.work / name, report=report)
