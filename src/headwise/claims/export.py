"""Rows of the ledger as JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from headwise.claims.results import Row


def to_json(rows: Sequence[Row]) -> str:
    """One object with all rows, see `Row.to_json`."""
    return json.dumps({"headwise_claims_table": 1, "claims": [row.to_json() for row in rows]}, indent=1, ensure_ascii=False) + "\n"


def to_csv(rows: Sequence[Row]) -> str:
    """A line per row behind a line of names; what was not measured is empty.

    Texts that a spreadsheet would take for formulas begin with an apostrophe.
    """
    told = [row.to_json() for row in rows]
    names = list(told[0]) if told else []
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in told:
        writer.writerow([_cell(row[name]) for name in names])
    return out.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@"):
        return "'" + value
    if isinstance(value, dict):
        return json.dumps(value)
    return "" if value is None else value
