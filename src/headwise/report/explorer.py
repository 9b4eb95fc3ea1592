"""The explorer: one page about head files, ablations, needle grids and traces, which works offline. Plain data in, one HTML file out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadScores
from headwise.report.explorer_compare import comparable, comparison_section
from headwise.report.explorer_data import Entry, entry_data, group_size, head_table, labelled, source, written
from headwise.report.explorer_figures import ablation_section, distribution_section, gallery, grid_section, map_chart, runs_chart
from headwise.report.numbers import capital, count, noun, scored, thresholds
from headwise.report.page.parts import details, figure, header, note, section, table, text_key
from headwise.report.page.shell import Html, document, join, resource, tag, write_document
from headwise.stats.agreement import gini, split_half_reliability

Trace = Mapping[str, Any]
LISTED = 12
LONG = ("cells", "samples", "needles")  # of a provenance: shown elsewhere or far too long to read


def write_explorer(results: Sequence[tuple[Path, str, Any]], path: Path, traces: Sequence[Trace] = ()) -> Path:
    """Write the page.

    Args:
        results: (file, kind, data) as `load_result` gives them.
        path: of the page.
        traces: of the first head file, see `HeadTrace.plain`.

    Returns:
        `path`.

    Raises:
        HeadwiseError: there is nothing to show.
    """
    return write_document(path, explorer(results, traces))


def explorer(results: Sequence[tuple[Path, str, Any]], traces: Sequence[Trace] = ()) -> str:
    """The whole page; arguments as for `write_explorer`.

    Raises:
        HeadwiseError: there is nothing to show.
    """
    if not results:
        raise HeadwiseError("nothing to show: give at least one result file")
    heads = [(file, data) for file, kind, data in results if kind == "heads"]
    for file, scores in heads:
        try:
            scored(scores)
        except HeadwiseError as error:
            raise HeadwiseError(f"{file}: {error}") from error
    entries = labelled(heads)
    body = join(
        _header(results, entries),
        gallery(entries) if len(entries) > 1 else "",
        *(_file(entry, traces if entry.number == 1 else ()) for entry in entries),
        *(_result(file, kind, data, i) for i, (file, kind, data) in enumerate(results, 1) if kind != "heads"),
        *(comparison_section(group) for group in comparable(entries)),
    )
    data = {
        "tables": {entry.key: head_table(entry.scores) for entry in entries},
        "files": [entry_data(entry) for entry in entries],
        "traces": list(traces),
    }
    return document(
        _title(entries, results), body, data=data, styles=[resource("explorer.css")], scripts=[resource("explorer.js")]
    )


def _title(entries: Sequence[Entry], results: Sequence[tuple[Path, str, Any]]) -> str:
    if len(entries) == 1:
        return f"{capital(entries[0].scores.score)} heads of {source(entries[0].scores)}"
    return f"{len(entries)} head files" if entries else results[0][0].name


def _header(results: Sequence[tuple[Path, str, Any]], entries: Sequence[Entry]) -> Html:
    if len(entries) != 1:
        return header(_title(entries, results))
    return header(_title(entries, results), facts=_facts(entries[0].scores))


def _facts(scores: HeadScores) -> dict[str, object]:
    known = scored(scores)
    facts: dict[str, object] = {f"{capital(noun(scores))}s": f"{scores.shape[0]} × {scores.shape[1]}"}
    if known.size < scores.values.size:
        facts["Not scored"] = scores.values.size - known.size
    for limit in thresholds(scores):
        above = int((known > limit).sum())
        facts[f"Above {limit:g}"] = f"{above} ({above / known.size:.1%})"
    facts["Highest score"] = f"{known.max():.2f}"
    if known.min() >= 0 and known.max() > 0:
        facts["Gini"] = f"{gini(known):.2f}"
    if scores.runs is not None and len(scores.runs) > 1:
        facts["Runs"] = len(scores.runs)
        reliability = split_half_reliability(scores.runs)
        facts["Split-half r"] = f"{reliability:.3f}" if np.isfinite(reliability) else "–"
    return facts


def _file(entry: Entry, traces: Sequence[Trace]) -> Html:
    """Everything about one head file."""
    cells = entry.scores.provenance.get("cells")
    parts = [
        _map_section(entry, traces),
        distribution_section(entry),
        grid_section(cells, str(entry.number)) if cells else "",
        _provenance(entry),
    ]
    return tag("div", *parts, class_="file", data_file=entry.number, hidden=entry.number > 1)


def _map_section(entry: Entry, traces: Sequence[Trace]) -> Html:
    scores = entry.scores
    marks = ["Darker cells score higher (in the dark theme: brighter cells)."]
    if (group := group_size(scores)) > 1:
        marks.append(f"Lines separate KV groups ({group} query heads share one KV head).")
    if missing := int(np.isnan(scores.values).sum()):
        marks.append(f"Crossed out: {count(missing, noun(scores))} not scored.")
    if sliding := scores.provenance.get("sliding_layers"):
        marks.append(f"Layers with a sliding window: {written(sliding)}.")
    drawing = tag("div", figure(map_chart(entry), " ".join(marks)), class_="map")
    keys = "Click a head for its details. With the keyboard: focus the map, move with the arrow keys, open with Enter, close with Esc."
    return section(entry.label, tag("div", drawing, _panel(entry, traces), class_="split"), lead=keys, id=f"heads-{entry.number}")


def _panel(entry: Entry, traces: Sequence[Trace]) -> Html:
    """The strongest heads; the page's script puts the chosen head in their place."""
    scores = entry.scores
    order = np.argsort(-scores.values, axis=None, kind="stable")[: min(LISTED, scored(scores).size)]
    rows = []
    for i in order:
        layer, head = divmod(int(i), scores.shape[1])
        name = f"L{layer}H{head}"
        active = "" if scores.runs is None or not len(scores.runs) else f"{scores.frequency[layer, head]:.0%}"
        rows.append((tag("a", name, href=entry.link(name)), f"{scores.values[layer, head]:.3f}", active))
    columns = (capital(noun(scores)), "Score", "Active" if scores.runs is not None and len(scores.runs) else "")
    listed = tag(
        "div", tag("h3", f"Strongest {noun(scores)}s"), table(columns, rows, numbers=(1, 2), stacked=False), class_="strongest"
    )
    chart = (
        tag("div", figure(runs_chart(entry)), class_="runs", hidden=True) if scores.runs is not None and len(scores.runs) else ""
    )
    key = text_key(weights="attention", marks={"needle": "in the prompt", "answer": "in the prompt"})
    traced = tag("div", key, tag("div", class_="trace"), class_="traces", hidden=True)
    missing = (
        note("To see what a head attends to, write this page with --model.")
        if not traces
        else note(f"Attention was recorded for the {len(traces[0]['heads'])} strongest heads only.")
    )
    chosen = tag(
        "div",
        tag("div", class_="about"),
        chart,
        traced,
        tag("div", missing, class_="untraced", hidden=True),
        class_="chosen",
        hidden=True,
    )
    return tag("div", listed, chosen, class_="panel", data_file=entry.number, aria_live="polite")


def _provenance(entry: Entry) -> Html:
    facts = {"score": f"{entry.scores.score}, version {entry.scores.score_version}", **entry.scores.provenance}
    rows = [(key.replace("_", " "), written(value)) for key, value in facts.items() if key not in LONG]
    needles = entry.scores.provenance.get("needles")
    parts = [table(("Setting", "Value"), rows)]
    if isinstance(needles, list | tuple) and needles and all(isinstance(needle, Mapping) for needle in needles):
        shown = [tuple(written(needle.get(field, "")) for field in ("needle", "question", "answer")) for needle in needles]
        parts.append(details(count(len(shown), "needle"), table(("Needle", "Question", "Answer"), shown)))
    return tag("section", details("Where these scores come from", *parts), id=f"origin-{entry.number}")


def _result(file: Path, kind: str, data: Mapping[str, Any], number: int) -> Html:
    """An ablation or a needle grid of its own file."""
    try:
        if kind == "ablation":
            return ablation_section(data, file.name, str(number))
        return grid_section(data["cells"], f"file-{number}", f"Needle grid: {file.name}")
    except HeadwiseError as error:
        raise HeadwiseError(f"{file}: {error}") from error
