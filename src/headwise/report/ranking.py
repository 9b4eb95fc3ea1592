"""Retrieval measures as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table


def measure_table(rows: Sequence[Mapping[str, Any]], first: Sequence[Mapping[str, Any]] | None, candidates: str) -> Table:
    """Measures of a run with 95 % intervals over queries, beside those of the order it started from.

    Args:
        rows: one per measure, with measure, queries, value, low and high.
        first: the same of the first stage; None or empty leaves its column out.
        candidates: what was ranked, for the title.
    """
    table = Table(title=f"Ranking {candidates}, {rows[0]['queries']} judged queries")
    for name in ("Measure", "Heads", "95 % CI"):
        table.add_column(name, justify="left" if name == "Measure" else "right")
    before = {row["measure"]: row for row in first or ()}
    if before:
        table.add_column("First stage", justify="right")
    for row in rows:
        cells = [row["measure"], f"{row['value']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"]
        if before:
            cells.append(f"{before[row['measure']]['value']:.3f}")
        table.add_row(*cells)
    return table
