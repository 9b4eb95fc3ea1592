"""The section of the ledger's page about one matrix of detectors and tasks: two tables with coloured cells. It needs no script."""

from __future__ import annotations

from collections.abc import Sequence

from headwise.report.claims_tables import with_interval
from headwise.report.page.parts import details, note, section
from headwise.report.page.shell import Html, slug, tag
from headwise.report.transfer_matrix import Cell, TransferMatrix, decimals

LEAD = "Every detector has its own notion of a retrieval head. Here the heads of each are removed on every task, and the lists of heads are compared."
INCREASES = "Loss increase of the right answer without the heads, nats per token; under a task: items that count, of how many."
READING = (
    "Colour: share of the largest increase of the task, so that tasks can be compared. Framed: the task by which the paper names its heads. "
    "×: no more than random heads of the same layers (their mean lies in or above the 95 % interval). Point at a cell for its interval."
)
ORDERED = "The row says whose heads they are, the column which detector finds them too."
DIAGONAL = (
    "Framed: heads in common of two lists of the same detector, each found on half of its items. Two detectors that agree as much as that cannot be "
    "told apart by these items."
)


def transfer_section(name: str, matrix: TransferMatrix) -> Html:
    """Both tables.

    Args:
        name: Of the model.
        matrix: Its numbers.
    """
    parts = [_table(INCREASES, _increases(matrix)), note(READING)] if matrix.tasks else [note("The model can do none of the tasks.")]
    common = f"Share of heads in common; by chance {matrix.by_chance}. {ORDERED}"
    parts += [_table(common, _overlap(matrix)), note(DIAGONAL)]
    if matrix.absent:
        facts = [tag("div", tag("dt", key), tag("dd", why)) for key, why in matrix.absent.items()]
        parts.append(details("Detectors and tasks without numbers", tag("dl", *facts, class_="about")))
    return section("Which heads are the same?", *parts, lead=LEAD, id=f"transfer-{slug(name)}", aside=tag("span", name, class_="soft"))


def _table(caption: str, rows: Sequence[Html]) -> Html:
    """A table whose first row is its head, with the caption above it, outside of what scrolls."""
    return tag(
        "figure",
        tag("figcaption", caption),
        tag("div", tag("table", tag("thead", rows[0]), tag("tbody", *rows[1:]), class_="transfer"), class_="scroll"),
    )


def _head(names: Sequence[object]) -> Html:
    return tag("tr", tag("th", "heads of", scope="col"), *(tag("th", name, scope="col") for name in names))


def _increases(matrix: TransferMatrix) -> list[Html]:
    """Detectors by tasks; random heads below."""
    names = [tag("span", task, tag("small", f"{some} of {every}")) for task, (some, every) in matrix.tasks.items()]
    rows = [_head(names)]
    for name in matrix.detectors:
        cells = [_increase(matrix.cells[name][task], f"{name} heads on {task}") for task in matrix.tasks]
        rows.append(tag("tr", tag("th", name, scope="row"), *cells))
    random = [_cell(decimals(matrix.random[task]), matrix.shades[task], f"random heads on {task}, mean over detectors") for task in matrix.tasks]
    return [*rows, tag("tr", tag("th", "random, mean", scope="row"), *random, class_="random")]


def _increase(cell: Cell, about: str) -> Html:
    told = f"{about}: {with_interval(cell.mean, cell.low, cell.high)}; random heads {decimals(cell.random)}"
    mark = "" if cell.above else tag("sup", "×")
    return _cell(decimals(cell.mean), cell.shade, told, mark, framed=cell.own)


def _overlap(matrix: TransferMatrix) -> list[Html]:
    """Detectors by detectors."""
    rows = [_head(matrix.detectors)]
    for one in matrix.detectors:
        cells = [
            _cell(decimals(share), share, f"halves of {one}" if one == other else f"heads of {one} that {other} finds too", framed=one == other)
            for other, share in matrix.overlap[one].items()
        ]
        rows.append(tag("tr", tag("th", one, scope="row"), *cells))
    return rows


def _cell(text: str, shade: float, title: str, mark: str = "", framed: bool = False) -> Html:
    return tag("td", text, mark, style=f"--s:{shade:.3f}", title=title, class_="framed" if framed else None)
