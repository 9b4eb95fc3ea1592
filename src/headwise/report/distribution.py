"""How scores are distributed over heads: the cliff behind the few retrieval heads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headwise.heads.types import HeadScores
from headwise.report.canvas import (
    BLUE,
    GREY,
    INK,
    LABEL,
    RED,
    SMALL,
    add_legend,
    new_figure,
    set_title,
    style,
    subject,
    write_figure,
)
from headwise.report.numbers import capital, count, noun, scored, shares, thresholds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def distribution(scores: HeadScores, path: Path) -> None:
    """Write the sorted scores of all heads.

    Args:
        scores: at least one head is scored.
        path: of the picture, see `write_figure`.

    Raises:
        HeadwiseError: no head is scored, or the file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    write_figure(lambda: draw_distribution(scores), path)


def draw_distribution(scores: HeadScores) -> Figure:
    """Scores of all heads from the strongest down; copy scores also with frequency, thresholds and shares of heads."""
    with_shares = bool(thresholds(scores))
    figure = new_figure(8.6 if with_shares else 6.0, 4.3 if with_shares else 3.8)
    if with_shares:
        ranked, side = figure.subplots(1, 2, width_ratios=(2.4, 1))
        _draw_shares(side, scores)
    else:
        ranked = figure.subplots()
    _draw_ranked(ranked, scores)
    handles, labels = ranked.get_legend_handles_labels()
    if len(labels) > 1:
        add_legend(figure, dict(zip(labels, handles, strict=True)))
    set_title(figure, f"{capital(scores.score)} score of {count(scored(scores).size, noun(scores))}", subject(scores.provenance))
    return figure


def _draw_ranked(axes: Axes, scores: HeadScores) -> None:
    name, limits = capital(scores.score), thresholds(scores)
    order = np.argsort(-scores.values, axis=None, kind="stable")[: scored(scores).size]
    rank = np.arange(1, order.size + 1)
    has_frequency = bool(limits) and scores.runs is not None and len(scores.runs) > 0
    if has_frequency:
        frequency = scores.frequency.ravel()[order]
        axes.plot(rank, frequency, "o", color=BLUE, markersize=3.2, alpha=0.55, markeredgewidth=0, label="activation frequency")
    values = scores.values.ravel()[order]
    marker = "s" if order.size <= 128 else None
    axes.plot(rank, values, "-", color=RED, linewidth=2, marker=marker, markersize=3.5, label=f"{scores.score} score")
    axes.set_xscale("log")
    _plain_log_ticks(axes, order.size)
    style(axes, f"{capital(noun(scores))} rank (log scale)", f"{name} score")
    if has_frequency:
        axes.set_ylabel(f"{name} score, activation frequency", fontsize=LABEL, color=INK)
    for limit, line in zip(limits, ("--", ":"), strict=False):
        above = count(int((scores.values > limit).sum()), noun(scores))
        axes.axhline(limit, color=GREY, linestyle=line, linewidth=1.2, zorder=0, label=f"score {limit:g} ({above} above)")


def _plain_log_ticks(axes: Axes, last: int) -> None:
    """1, 10, 100 ... written out; 2 and 5 between if the axis is short."""
    between = (1, 2, 5) if last <= 100 else (1,)
    ticks = [m * 10**e for e in range(7) for m in between if m * 10**e <= last]
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xlim(0.9, max(last, 2) * 1.1)


def _draw_shares(axes: Axes, scores: HeadScores) -> None:
    rows = shares(scores)
    bars = axes.barh(range(len(rows)), [100 * row.share for row in rows], color=RED, height=0.6)
    axes.bar_label(bars, [f"{row.share:.1%} ({row.heads})" for row in rows], fontsize=SMALL, padding=3, color=INK)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    longest = 100 * max(row.share for row in rows)
    axes.set_xticks(range(0, min(100, int(longest) + 24) + 1, 25))
    axes.set_xlim(0, longest * 1.8)
    style(axes, "Share of heads (%)", f"{capital(scores.score)} score")
