"""How scores are distributed over heads: the cliff behind the few retrieval heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from headwise.core.heads import HeadScores
from headwise.report.canvas import BLUE, GREY, INK, LABEL, RED, SMALL, new_figure, set_title, style, subject
from headwise.report.numbers import capital, noun, scored, shares, thresholds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_distribution(scores: HeadScores) -> Figure:
    """Scores of all heads from the strongest down; copy scores also with frequency, thresholds and shares of heads."""
    count = scored(scores).size
    with_shares = bool(thresholds(scores))
    figure = new_figure(8.6 if with_shares else 6.0, 4.0)
    if with_shares:
        ranked, side = figure.subplots(1, 2, width_ratios=(2.4, 1))
        _draw_shares(side, scores)
    else:
        ranked = figure.subplots()
    _draw_ranked(ranked, scores)
    set_title(figure, f"{capital(scores.score)} score of {count} {noun(scores)}s", subject(scores.provenance))
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
    axes.plot(rank, values, "-", color=RED, linewidth=2, marker="s", markersize=2.8, label=f"{scores.score} score")
    axes.set_xscale("log")
    _plain_log_ticks(axes, order.size)
    style(axes, f"{capital(noun(scores))} rank (log scale)", f"{name} score")
    if has_frequency:
        axes.set_ylabel(f"{name} score; share of runs", fontsize=LABEL, color=INK)
    for limit in limits:
        above = int((scores.values > limit).sum())
        axes.axhline(limit, color=GREY, linestyle="--", linewidth=1, zorder=0, label=f"{limit:g} ({above} {noun(scores)}s above)")
    axes.legend(fontsize=SMALL, frameon=False, labelcolor=INK, loc="upper right")


def _plain_log_ticks(axes: Axes, count: int) -> None:
    """1, 10, 100 ... written out; 2 and 5 between if the axis is short."""
    between = (1, 2, 5) if count <= 100 else (1,)
    ticks = [m * 10**e for e in range(7) for m in between if m * 10**e <= count]
    axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
    axes.set_xlim(0.9, max(count, 2) * 1.1)


def _draw_shares(axes: Axes, scores: HeadScores) -> None:
    rows = shares(scores)
    bars = axes.barh(range(len(rows)), [100 * row.share for row in rows], color=RED, height=0.6)
    axes.bar_label(bars, [f"{row.share:.1%} ({row.heads})" for row in rows], fontsize=SMALL, padding=3, color=INK)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_xlim(0, 100 * max(row.share for row in rows) * 1.6)
    style(axes, "Share of heads (%)", f"{capital(scores.score)} score")
