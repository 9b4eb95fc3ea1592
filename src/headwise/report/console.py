"""Printing: tables and lines in one go, and the small tables that need no drawing."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from headwise.heads.text import printable, shorten

QUERIES, BEST = 3, 3  # queries, and passages of each, that `best_table` shows
WIDTHS = (40, 60)  # characters of a query and of a passage's text there


class _Printable(Console):
    """Names in results come from files: their escape sequences must not reach the terminal. Those of rich are added later."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Pieces of text and style."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def print_all(*parts: RenderableType) -> None:
    """Print tables and lines to standard output; paths are never wrapped or coloured."""
    console = _Printable(file=sys.stdout, highlight=False, soft_wrap=True)
    for part in parts:
        console.print(part, markup=False)


def facts_table(name: str, value: str, facts: Mapping[str, str]) -> Table:
    """Two columns.

    Args:
        name: heading of the first one.
        value: heading of the second one.
        facts: what stands in them, from top to bottom.
    """
    table = Table(name, value, box=None, header_style="bold", pad_edge=False)
    for key, text in facts.items():
        table.add_row(key, text)
    return table


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


def grid_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    """Mean recall per length (rows) and depth (columns), in per cent."""
    lengths = sorted({cell["length"] for cell in cells})
    depths = sorted({cell["depth"] for cell in cells})
    table = Table("context \\ depth", *(f"{depth:.2f}" for depth in depths), box=None, header_style="bold", pad_edge=False)
    for length in lengths:
        row = []
        for depth in depths:
            found = [cell["recall"] for cell in cells if (cell["length"], cell["depth"]) == (length, depth)]
            row.append(f"{100 * sum(found) / len(found):.0f}" if found else "-")
        table.add_row(str(length), *row)
    return table


def lm_eval_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """One line per run of lm-evaluation-harness and task (of a group: the group and each of its tasks), one column per metric of any of them."""
    tasks = list(dict.fromkeys(task for run in runs for task in run["results"]))
    metrics = list(dict.fromkeys(key for task in runs[0]["results"].values() for key in _metrics(task)))
    titles = ["heads ablated", *(["task"] if len(tasks) > 1 else []), *(metric.split(",")[0] for metric in metrics)]
    table = Table(*titles, box=None, header_style="bold", pad_edge=False)
    for run in runs:
        draw = f" (draw {run['draw'] + 1})" if run["kind"] == "random" else ""
        name = "none" if run["kind"] == "none" else f"{run['kind']} {run['k']}{draw}"
        for task in tasks:
            values = _metrics(run["results"].get(task, {}))
            cells = (f"{values[metric]:.4g}" if metric in values else "" for metric in metrics)
            table.add_row(name, *([Text(task)] if len(tasks) > 1 else []), *cells)
            name = ""
    return table


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """The metrics among what the harness says of a task."""
    known = {key: value for key, value in values.items() if "," in key and "_stderr" not in key}
    return {key: value for key, value in known.items() if isinstance(value, int | float)}
