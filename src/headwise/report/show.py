"""What `headwise show` shows of each kind of result: parts to print, facts as plain data, and how its pictures are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from headwise.heads import HeadScores
from headwise.heads.plain import plain
from headwise.stats.agreement import gini, split_half_reliability


@dataclass(frozen=True)
class Shown:
    """One result.

    Attributes:
        parts: tables and lines to print.
        facts: numbers that a script may want.
        pictures: what a picture shows ("" for the only one) -> a function that writes it to a path.
    """

    parts: list[RenderableType]
    facts: dict[str, Any]
    pictures: Mapping[str, Callable[[Path], None]]


def facts_of(scores: HeadScores, top: int = 10) -> dict[str, Any]:
    """What `show_heads` tells, as plain JSON data; numbers that are not defined are null.

    Args:
        scores: at least one head is scored.
        top: how many of the strongest heads to name.

    Raises:
        HeadwiseError: the scores rank nothing, see `HeadScores.ranking`.
    """
    ranking = scores.ranking()[:top]
    runs = scores.runs
    reliability = split_half_reliability(runs) if runs is not None else float("nan")
    return {
        "score": scores.score,
        "layers": scores.shape[0],
        "heads": scores.shape[1],
        "shape_guessed": bool(scores.provenance.get("shape_guessed")),
        "tables": list(scores.tables),
        "over_0.1": int((scores.values > 0.1).sum()),
        "over_0.5": int((scores.values > 0.5).sum()),
        "gini": plain(gini(scores.values)),
        "split_half_reliability": plain(reliability),
        "runs": scores.provenance.get("runs"),
        "solved": scores.provenance.get("solved"),
        "top": [{"head": str(head), "score": float(scores.values[head])} for head in ranking],
    }


def show_heads(scores: HeadScores, top: int) -> Shown:
    """The strongest heads, the map of all heads, and numbers about the whole table; the needle grid too if the file holds one.

    Args:
        scores: at least one head is scored.
        top: how many of the strongest heads to list, at least 1.

    Raises:
        HeadwiseError: a `top` below 1, or scores that rank nothing.
    """
    from headwise.report.distribution import distribution
    from headwise.report.heat_map import heat_map
    from headwise.report.needle_grid import needle_grid
    from headwise.report.tables import head_table, summary_lines
    from headwise.report.terminal_map import TerminalMap

    pictures = {"heatmap": partial(heat_map, scores), "distribution": partial(distribution, scores)}
    if cells := scores.provenance.get("cells"):
        pictures["grid"] = partial(needle_grid, cells)
    return Shown([head_table(scores, top), TerminalMap(scores), *summary_lines(scores)], facts_of(scores, top), pictures)


def show_result(data: dict[str, Any]) -> Shown:
    """An ablation or a needle grid."""
    from headwise.report.ablation_curves import ablation_curves
    from headwise.report.console import grid_table
    from headwise.report.needle_grid import needle_grid
    from headwise.report.tables import ablation_table

    if "summary" in data:
        return Shown([ablation_table(data)], {"summary": data["summary"]}, {"": partial(ablation_curves, data)})
    facts = {"recall": data["recall"], "exact": data["exact"]}
    return Shown([grid_table(data["cells"])], facts, {"": partial(needle_grid, data["cells"])})
