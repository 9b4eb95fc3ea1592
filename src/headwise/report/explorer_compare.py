"""Comparing head files in the explorer: correlation beside what noise allows, heads in common, and every head as a point."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.heads.plain import plain
from headwise.report.explorer_data import Entry
from headwise.report.page.charts import GRID, heat_map, lines, scatter
from headwise.report.page.parts import figure, figures, note, section, table
from headwise.report.page.shell import Html, data_tag, join, tag
from headwise.stats.agreement import pearson, split_half_reliability, split_half_top_overlap, top_overlap

NAMED, SPLITS = 10, 20
BOTH, FIRST, SECOND, CHANCE = "both files", "halves of first", "halves of second", "chance"
UNKNOWN = "–"
Data = dict[str, Any]


def comparable(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Files whose tables have the same shape, in groups of at least two."""
    groups: dict[tuple[int, int], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.scores.shape, []).append(entry)
    return [group for group in groups.values() if len(group) > 1]


def comparison(entries: Sequence[Entry]) -> Data:
    """Numbers about all pairs of files of one shape.

    Returns:
        `pairs`, each with `bound`, the correlation that two maps of these reliabilities reach if they differ by noise alone (Spearman 1904; None
        where a file has no runs), and `overlap`, the share of the K strongest heads in common for every K in `ks`. `retest` is that share
        between two halves of the runs of one file.
    """
    steady = {entry.number: reliability(entry) for entry in entries}
    most = min(int(np.isfinite(entry.scores.values).sum()) for entry in entries)
    ks = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if k < most]
    pairs = [_pair(a, b, ks, steady) for a, b in combinations(entries, 2)]
    retest = {entry.number: _halves(entry, ks) for entry in entries}
    labels = {entry.number: entry.label for entry in entries}
    return {"ks": ks, "pairs": pairs, "retest": retest, "labels": labels, "heads": entries[0].scores.values.size}


def reliability(entry: Entry) -> float | None:
    """Expected correlation with the map of as many other runs: two halves, corrected to full length (Spearman and Brown 1910)."""
    runs = entry.scores.runs
    half = split_half_reliability(runs) if runs is not None else float("nan")
    return 2 * half / (1 + half) if half > 0 else None


def comparison_section(entries: Sequence[Entry]) -> Html:
    """Table of all pairs, and one pair in figures; the page's script shows another pair when it is chosen."""
    held = comparison(entries)
    first = held["pairs"][0]
    a, b = (next(entry for entry in entries if entry.number == first[side]) for side in ("a", "b"))
    columns = {
        "name": "Name",
        "layer": "Layer",
        "head": "Head",
        "a": "Score in the first file",
        "b": "Score in the second file",
    }
    same = a.scores.score == b.scores.score
    every = scatter(
        _points(a, b),
        columns,
        x="a",
        y="b",
        label="Score of every head in two files",
        name=f"compare-heads-{a.number}",
        diagonal=same,
        cursor=("head", "layer"),
    )
    common = lines(
        _overlap_rows(held, first),
        {"k": "Strongest heads, K", "share": "Share in common", "what": "Between"},
        x="k",
        y="share",
        series="what",
        log_x=len(held["ks"]) > 3,
        y_domain=(0, 1),
        x_values=held["ks"],
        colours={BOTH: "$red", FIRST: "$blue", SECOND: "$sky", CHANCE: "$grey"},
        label="Share of the K strongest heads that two files have in common",
        name=f"compare-overlap-{a.number}",
    )
    left = "Each point is a head; click one to open it in the first file."
    halves = (
        "Halves: two random halves of the runs of one file, so each has half as many runs. "
        if any(held["retest"].values())
        else ""
    )
    right = f"{halves}Chance: two random sets of K heads."
    return section(
        "Comparison",
        _matrix(held, entries) if len(entries) > 2 else "",
        _choice(entries) if len(entries) > 2 else note(f"First file: {a.label}. Second file: {b.label}."),
        figures(figure(every, left, title="Scores in both files"), figure(common, right, title="Overlap of the strongest heads")),
        _pair_table(held),
        data_tag(held, class_="comparison"),
        lead=f"{len(entries)} files with {a.scores.shape[0]} × {a.scores.shape[1]} heads (layers × heads per layer).",
        id=f"compare-{a.number}",
    )


def _pair(a: Entry, b: Entry, ks: Sequence[int], steady: dict[int, float | None]) -> Data:
    x, y = a.scores.values, b.scores.values
    first, second = steady[a.number], steady[b.number]
    return {
        "a": a.number,
        "b": b.number,
        "pearson": plain(pearson(x, y)),
        "spearman": plain(pearson(_ranks(x), _ranks(y))),
        "bound": None if first is None or second is None else float(np.sqrt(first * second)),
        "overlap": [top_overlap(x, y, k) for k in ks],
    }


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks of a table, ties sharing their mean rank; NaN stays NaN."""
    flat = values.ravel()
    known = np.isfinite(flat)
    _, inverse, counts = np.unique(flat[known], return_inverse=True, return_counts=True)
    mean = np.cumsum(counts) - (counts - 1) / 2
    out = np.full(flat.shape, np.nan)
    out[known] = mean[inverse]
    return out.reshape(values.shape)


def _halves(entry: Entry, ks: Sequence[int]) -> list[float] | None:
    runs = entry.scores.runs
    if runs is None or len(runs) < 2:
        return None
    return [split_half_top_overlap(runs, k, splits=SPLITS) for k in ks]


def _points(a: Entry, b: Entry) -> Data:
    layers, heads = a.scores.shape
    layer, head = np.divmod(np.arange(layers * heads), heads)
    names = [f"L{i}H{j}" for i, j in zip(layer, head, strict=True)]
    return {"name": names, "layer": layer.tolist(), "head": head.tolist()} | {
        side: [None if np.isnan(v) else float(f"{v:.4g}") for v in entry.scores.values.ravel()]
        for side, entry in (("a", a), ("b", b))
    }


def _overlap_rows(held: Data, pair: Data) -> Data:
    """Rows of the figure about one pair; the page's script makes the same ones for other pairs."""
    known = [(BOTH, pair["overlap"]), (FIRST, held["retest"][pair["a"]]), (SECOND, held["retest"][pair["b"]])]
    rows = [(k, share, what) for what, shares in known if shares is not None for k, share in zip(held["ks"], shares, strict=True)]
    rows += [(k, k / held["heads"], CHANCE) for k in held["ks"]]
    return {name: [row[i] for row in rows] for i, name in enumerate(("k", "share", "what"))}


def _matrix(held: Data, entries: Sequence[Entry]) -> Html:
    """Correlations of all pairs."""
    found = {(pair["a"], pair["b"]): pair["pearson"] for pair in held["pairs"]}
    rows = [
        (a.number, f"{b.number}  {b.label}", found.get((a.number, b.number), found.get((b.number, a.number))))
        for a in entries
        for b in entries
        if a is not b
    ]
    data = {name: [row[i] for row in rows] for i, name in enumerate(("a", "b", "pearson"))}
    known = [row[2] for row in rows if row[2] is not None]
    chart = heat_map(
        data,
        {"a": "File", "b": "Second file", "pearson": "Pearson correlation"},
        x="a",
        y="b",
        value="pearson",
        label="Correlation of the scores of all pairs of files",
        name=f"compare-matrix-{entries[0].number}",
        scheme=GRID,
        domain=(min([0.0, *known]), 1),
        numbers=".2f",
        height=34 * len(entries),
    )
    return figure(
        chart,
        "Pearson correlation over the heads that both files score. Files are numbered in the order in which they were given.",
        title="Correlation of all pairs",
    )


def _choice(entries: Sequence[Entry]) -> Html:
    def select(name: str, label: str, chosen: int) -> Html:
        options = [tag("option", entry.label, value=entry.number, selected=i == chosen) for i, entry in enumerate(entries)]
        return tag("label", f"{label} ", tag("select", *options, name=name))

    return tag("p", select("compare-a", "First file", 0), " ", select("compare-b", "Second file", 1), class_="choice")


def _pair_table(held: Data) -> Html:
    """One line per pair."""
    at = next((i for i, k in enumerate(held["ks"]) if k == NAMED), None)
    rows = []
    for pair in held["pairs"]:
        shared = UNKNOWN if at is None else f"{pair['overlap'][at]:.0%}"
        numbers = (_number(pair["pearson"]), _number(pair["bound"]), _number(pair["spearman"]), shared)
        rows.append((join(held["labels"][pair["a"]], " / ", held["labels"][pair["b"]]), *numbers))
    columns = ("Files", "Pearson", "Test-retest bound", "Spearman", f"Top {NAMED} shared")
    text = "Test-retest bound: the highest correlation that the noise of both files allows, estimated from random halves of their runs."
    return join(table(columns, rows, numbers=(1, 2, 3, 4)), note(text))


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3f}"
