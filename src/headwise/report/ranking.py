"""A run and its retrieval measures as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from headwise.heads.text import shorten

QUERIES, BEST = 3, 3  # that `best_table` shows
WIDTHS = (40, 60)  # characters of a query and of a passage's text there


def best_table(run: Mapping[str, Mapping[str, float]], queries: Mapping[str, str], texts: Mapping[str, str]) -> Table:
    """The best passages of the first queries.

    Args:
        run: query -> passage -> score; equal scores in the order given, as in the run's file.
        queries: query -> what it asks.
        texts: passage -> what it says, its title included.
    """
    more = f" (the first {QUERIES} of {len(run)} queries)" if len(run) > QUERIES else ""
    table = Table("Query", "Rank", "Passage", "Score", "Text", title=f"Best passages{more}")
    table.columns[1].justify = table.columns[3].justify = "right"
    for query in list(run)[:QUERIES]:
        asked, scores = shorten(" ".join(queries[query].split()), WIDTHS[0]), run[query]
        for rank, key in enumerate(sorted(scores, key=lambda key: -scores[key])[:BEST], 1):
            said = shorten(" ".join(texts[key].split()), WIDTHS[1])
            table.add_row(Text(asked if rank == 1 else ""), str(rank), Text(key), f"{scores[key]:.4g}", Text(said))
        table.add_section()
    return table


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
