"""What was chosen from a scored corpus, as a table for the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from headwise.report.influence_numbers import named, number


def choice_table(thresholds: Mapping[str, Any]) -> Table:
    """One line per domain: ranked and chosen documents, the cut, and the chosen share of ranked documents and of their tokens."""
    table = Table(title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("Domain")
    for name in ("Ranked", "Chosen", "Cut", "Of documents", "Of tokens"):
        table.add_column(name, justify="right")
    rows = thresholds["domains"]
    for row in [*rows, {**thresholds["all"], "domain": "all"}] if len(rows) > 1 else rows:
        cut = f"{len(row['strata'])} strata" if "strata" in row else number(row.get("threshold"))
        shares = (number(row[name], ".1%") for name in ("document_share", "token_share"))
        table.add_row(named(row["domain"]), f"{row['ranked']:,}", f"{row['chosen']:,}", cut, *shares)
    return table
