"""The page of `headwise rank`: the best passages of each query, with the words that drew attention. Plain data in, one HTML file out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwise.report.numbers import count, public_name
from headwise.report.page.parts import header, marked_text, note, section, table, text_key
from headwise.report.page.shell import Html, document, join, tag, write_document

Data = Mapping[str, Any]
OPEN, NAMED = 3, 16  # queries that are open at first; heads that are named
STYLE = """
.passage{border-top:1px solid var(--line);padding:.7rem 0 .3rem}
.passage>header{display:flex;flex-wrap:wrap;gap:.2rem 1rem;align-items:baseline}
.passage h3{margin:0}.passage .marked{margin:.3rem 0}
.relevant{color:var(--good);font-weight:650;font-size:.9rem}
details.query>summary{font-size:1.1rem;overflow-wrap:anywhere}
"""


def write_page(result: Data, path: Path) -> Path:
    """Write the page.

    Args:
        result: model, heads, total number of queries, the queries to show, and measures (or None).
        path: of the page.

    Returns:
        `path`.

    Raises:
        HeadwiseError: the file cannot be written.
    """
    return write_document(path, page(result))


def page(result: Data) -> str:
    """The whole document."""
    heads, shown, model = result["heads"], result["queries"], public_name(result["model"])
    named = ", ".join(heads[:NAMED]) + (f" and {len(heads) - NAMED} more" if len(heads) > NAMED else "")
    facts: dict[str, object] = {"Queries": result["total"], "Heads": len(heads)}
    facts |= {row["measure"]: f"{row['value']:.3f}" for row in result["measures"] or ()}
    some = f"The first {len(shown)} of {result['total']} queries. " if len(shown) < result["total"] else ""
    body = join(
        header(f"Passages ranked by {model}", f"Ranked by the attention of {count(len(heads), 'head')}: {named}.", facts=facts),
        _measures(result["measures"]),
        section(
            "Queries",
            text_key(weights="attention from the query, minus the attention from a query without content"),
            *(_query(query, i < OPEN) for i, query in enumerate(shown)),
            note("Colours come from a separate pass over the passages shown here; scores and ranks come from all candidates."),
            lead=f"{some}Darker words received more attention; every query has its own scale.",
        ),
    )
    return document(f"headwise: passages ranked by {model}", body, data={}, styles=[STYLE])


def _measures(rows: Any) -> Html:
    if not rows:
        return Html()
    shown = [(row["measure"], f"{row['value']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}") for row in rows]
    text = f"{rows[0]['queries']} judged queries; intervals over queries."
    return section("Measures", table(("Measure", "Mean", "95 % CI"), shown, numbers=(1, 2)), lead=text)


def _query(query: Data, open: bool) -> Html:
    most = max((value for passage in query["passages"] for _, value in passage["pieces"]), default=0.0)
    rows = [_passage(passage, most) for passage in query["passages"]]
    summary = join(query["query"], tag("span", f"  {len(rows)} of {query['candidates']} passages", class_="soft"))
    return tag("details", tag("summary", summary), *rows, class_="query", open=open)


def _passage(passage: Data, most: float) -> Html:
    grade = passage["grade"]
    judged = (
        ""
        if grade is None
        else tag("span", "✓ relevant" if grade > 0 else "not judged relevant", class_="relevant" if grade > 0 else "soft")
    )
    moved = "" if passage["before"] == passage["rank"] else f", rank {passage['before']} before"
    top = tag(
        "header",
        tag("h3", f"{passage['rank']}. {passage['id']}"),
        tag("span", f"score {passage['score']:.4g}{moved}", class_="soft"),
        judged,
    )
    pieces = [(text, max(0.0, value), None) for text, value in passage["pieces"]]
    return tag("div", top, marked_text(pieces, scale=most if most > 0 else 1.0), class_="passage")
