"""Figures of `headwise lab properties`, first part: which heads, how many, and how alike two models are.

Every panel is narrow enough to be read on a phone; a page puts several beside each other where there is room. Data: see the property files
of `headwise_lab.properties`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from headwise.report.canvas import BLUE, GREY, INK, LABEL, RED, SMALL, add_legend, new_figure, shortened, style
from headwise.report.numbers import RETRIEVAL, STRONG, count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Data = Mapping[str, Any]
WIDE, NARROW, TALL = 4.2, 2.8, 5.2  # inches
GREEN, ORANGE, PURPLE, SKY = "#009E73", "#E69F00", "#CC79A7", "#56B4E9"  # Okabe and Ito, as in the canvas
ON_STRONG = "#111111"  # text on a cell of full colour, light or dark page
LINES = ((RED, "o"), (BLUE, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))
CHANCE = "chance (shuffled)"
KINDS = {
    "longer contexts": ORANGE,
    "chat template": PURPLE,
    "other needles": SKY,
    "extended": RED,
    "other seed": BLUE,
    "other architecture": GREEN,
}


class Panel(NamedTuple):
    """One figure.

    Attributes:
        name: Of its file.
        draw: Makes it.
        caption: What to see in it, for everybody who cannot.
    """

    name: str
    draw: Callable[[], Figure]
    caption: str


def universal_panels(data: Data) -> list[Panel]:
    """One map of all heads per model."""
    found = []
    for model in data["models"]:
        if model["values"] is None:
            continue
        text = f"{model['name']}: {model['over_0.1']} of {_size(model)} heads over 0.1, {model['over_0.5']} over 0.5"
        found.append(
            Panel(f"map-{model['name']}", partial(draw_map, model), f"{text}; {model['solved_share']} of the runs solved.")
        )
    return found


def _size(model: Data) -> int:
    return int(model["layers"]) * int(model["heads"])


def draw_map(model: Data) -> Figure:
    """Layer x head, as dark as the score is high; scores over 0.1 are written out and framed."""
    from matplotlib.patches import Rectangle

    values, columns = model["values"], int(model["heads"])
    figure = new_figure(NARROW, 0.62 + min(TALL, NARROW * 0.86 * len(values) / columns))
    axes = figure.subplots()
    for layer, row in enumerate(values):
        for head, value in enumerate(row):
            if value is None:
                continue
            over = value > RETRIEVAL
            box = ((head - 0.5, layer - 0.5), 1, 1)
            axes.add_patch(Rectangle(*box, facecolor=RED, alpha=max(0.0, min(1.0, value)), linewidth=0))
            axes.add_patch(
                Rectangle(*box, fill=False, edgecolor=INK if over else GREY, linewidth=1.1 if over else 0.25, zorder=3 + over)
            )
            if over and columns <= 12:
                ink = ON_STRONG if value > 0.7 else INK
                axes.text(
                    head, layer, f"{value:.2f}".removeprefix("0"), fontsize=7, color=ink, ha="center", va="center", zorder=5
                )
    axes.set_xlim(-0.6, columns - 0.4)
    axes.set_ylim(len(values) - 0.4, -0.6)
    step = max(1, columns // 8)
    axes.set_xticks(range(0, columns, step))
    axes.set_yticks(range(0, len(values), max(1, len(values) // 8)))
    style(axes, "Head", "Layer")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    set_name(figure, axes, model["name"], f"{model['over_0.1']} over 0.1 · {model['over_0.5']} over 0.5")
    return figure


def sparse_panels(data: Data) -> list[Panel]:
    """Share of heads over both thresholds beside the paper's models, and scores by rank."""
    if not data["models"]:
        return []
    shares = [f"{m['name']} {100 * m['over_0.1']:.1f} %" for m in data["models"]]
    bars = f"Share of heads over 0.1 (over 0.5 in full colour): {', '.join(shares)}; the models of the paper 2.1 to 6.2 %."
    ranks = "Scores from the strongest head down; the share over 0.1 in the paper is shaded."
    return [
        Panel("sparse-shares", partial(draw_shares, data), bars),
        Panel("sparse-ranks", partial(draw_ranks, data), ranks),
    ]


def draw_shares(data: Data) -> Figure:
    """Bars: heads over 0.1, the part over 0.5 in full colour."""
    rows = [(m["name"], 100 * m["over_0.1"], 100 * m["bins"][3]) for m in data["models"]]
    theirs = [(m["name"], 100 * m["over_0.1"], 100 * m["bins"][3]) for m in data["paper"]]
    return draw_bars(rows, theirs, "Share of all heads (%)", ("score over 0.1", "score of at least 0.5"))


def draw_bars(
    ours: Sequence[tuple[str, float, float]], theirs: Sequence[tuple[str, float, float]], label: str, keys: tuple[str, ...]
) -> Figure:
    """Horizontal bars, those measured here above, models of the paper in blue below.

    Args:
        ours: (name, value, part of it in full colour) of models measured here.
        theirs: The same of the paper.
        label: Of the scale.
        keys: What the light and the full colour mean.
    """
    from matplotlib.patches import Patch

    rows = [*ours, *theirs]
    places = [i + (0.9 if i >= len(ours) else 0.0) for i in range(len(rows))]
    figure = new_figure(WIDE, 0.235 * (len(rows) + 2) + 1.05)
    axes = figure.subplots()
    longest = max(max(row[1] for row in rows), 1.0)
    for place, (_, value, strong), colour in zip(places, rows, [RED] * len(ours) + [BLUE] * len(theirs), strict=True):
        axes.barh(place, value, height=0.62, color=colour, alpha=0.4)
        axes.barh(place, strong, height=0.62, color=colour)
        axes.text(value + longest * 0.02, place, f"{value:.1f}", va="center", fontsize=SMALL, color=INK)
    for place, text in ((-0.85, "measured here"), (places[len(ours)] - 0.85 if theirs else 0.0, "models of the paper")):
        axes.text(0, place, text, fontsize=SMALL, color=GREY, va="center", style="italic")
    axes.set_yticks(places, [shortened(name, 1.35, SMALL) for name, *_ in rows])
    axes.set_ylim(places[-1] + 0.6, -1.3)
    axes.set_xlim(0, longest * 1.16)
    style(axes, label, "")
    axes.tick_params(axis="y", length=0)
    handles = [Patch(facecolor=RED, alpha=0.4), Patch(facecolor=RED)]
    if len(keys) > 1:
        add_legend(figure, dict(zip(keys, handles, strict=True)))
    return figure


def draw_ranks(data: Data) -> Figure:
    """Score against rank, one line per model."""
    figure = new_figure(WIDE, 3.2)
    axes = figure.subplots()
    for (colour, marker), model in zip(cycle(len(data["models"])), data["models"], strict=True):
        share = [100 * (i + 1) / model["heads"] for i in range(model["heads"])]
        axes.plot(share, model["ranked"], color=colour, marker=marker, markersize=3, linewidth=1.4, label=model["name"])
    for limit in (RETRIEVAL, STRONG):
        axes.axhline(limit, color=GREY, linestyle="--", linewidth=1, zorder=0)
        axes.text(100, limit + 0.015, f"{limit:g}", color=GREY, fontsize=SMALL, ha="right")
    axes.axvspan(2.1, 6.2, color=BLUE, alpha=0.18, linewidth=0, label="over 0.1 in the paper: 2.1 to 6.2 %")
    axes.set_xscale("log")
    axes.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    axes.set_xticks([], minor=True)
    axes.set_ylim(-0.03, 1.03)
    style(axes, "Strongest heads, % of all (log scale)", "Copy score")
    legend_of(figure, axes)
    return figure


def intrinsic_panels(data: Data) -> list[Panel]:
    """Correlations of score maps, and the heads of base against continuation."""
    found = []
    if data["pairs"]:
        texts = [f"{_told(pair)} {pair['pearson']:.2f}" for pair in _shown(data["pairs"])]
        text = f"Pearson correlation of score maps: {'; '.join(texts)}. In the paper 0.84 to 0.96 within a family, about 0 across families."
        found.append(Panel("intrinsic-pairs", partial(draw_pairs, data), text))
    if data["scatter"]:
        names = f"{data['scatter']['a']} and its continuation {data['scatter']['b']}"
        found.append(Panel("intrinsic-heads", partial(draw_scatter, data["scatter"]), f"Scores of every head in {names}."))
    return found


def draw_pairs(data: Data) -> Figure:
    """One row per pair: the correlation, what shuffled heads give, and the most that noise allows; the paper's pairs below."""
    pairs = _shown(data["pairs"])
    rows = len(pairs) + len(data["paper"])
    figure = new_figure(WIDE, 0.4 * rows + 1.55)
    axes = figure.subplots()
    for place, pair in enumerate(pairs):
        colour = KINDS.get(pair["relation"], GREY)
        axes.plot(pair["shuffled"], [place] * 2, color=GREY, alpha=0.35, linewidth=6, solid_capstyle="butt", label=CHANCE)
        if pair["ceiling"] is not None:
            axes.plot([pair["ceiling"]], [place], "|", color=INK, markersize=11, markeredgewidth=1.6, label="ceiling (noise)")
        axes.plot([pair["pearson"]], [place], "o", color=colour, markersize=7, label=pair["relation"], zorder=4)
        _label_pair(axes, place, f"{pair['a']} / {pair['b']}", pair["pearson"], INK)
    for place, pair in enumerate(data["paper"], len(pairs)):
        axes.plot([pair["pearson"]], [place], "D", color=BLUE, markerfacecolor="none", markersize=6.5, label="paper")
        _label_pair(axes, place, f"paper: {pair['name']}", pair["pearson"], GREY)
    axes.axvline(0, color=GREY, linewidth=0.8, alpha=0.45, zorder=0)
    axes.axvline(0.8, color=RED, linewidth=1, linestyle="--", zorder=0)
    axes.set_xlim(-0.45, 1.05)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_ylim(rows - 0.5, -0.85)
    axes.set_yticks([])
    style(axes, "Pearson correlation of score maps", "")
    axes.spines["left"].set_visible(False)
    legend_of(figure, axes)
    return figure


def _shown(pairs: Sequence[Data]) -> list[Data]:
    """Pairs that say something about the claim, in the order of `KINDS`; all if there are none."""
    known = [pair for pair in pairs if pair["relation"] in KINDS] or list(pairs)
    return sorted(known, key=lambda pair: [*KINDS, pair["relation"]].index(pair["relation"]))


def _told(pair: Data) -> str:
    """Which maps a pair compares; a model against itself is told by what differs."""
    return (
        f"{pair['a']}, {pair['relation']}"
        if pair["b"] == pair["relation"]
        else f"{pair['a']} and {pair['b']} ({pair['relation']})"
    )


def _label_pair(axes: Axes, place: int, name: str, value: float, ink: str) -> None:
    """The names above the row, the number beside it."""
    axes.text(-0.45, place - 0.45, name, fontsize=SMALL, color=ink, va="center")
    axes.text(1.07, place, f"{value:.2f}", fontsize=SMALL, color=ink, va="center")


def draw_scatter(pair: Data) -> Figure:
    """Every head as a point, score in one model against score in the other."""
    figure = new_figure(3.4, 3.3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", zorder=0)
    axes.plot(pair["x"], pair["y"], "o", color=RED, alpha=0.6, markersize=6, markeredgewidth=0)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.04)
    axes.set_aspect("equal")
    style(axes, shortened(f"Score in {pair['a']}", 2.6), shortened(f"Score in {pair['b']}", 2.6))
    return figure


def cycle(number: int) -> list[tuple[str, str]]:
    """A colour and a marker per line, repeated if there are more lines than colours."""
    return [LINES[i % len(LINES)] for i in range(number)]


def legend_of(figure: Figure, axes: Axes) -> None:
    """A legend below, each label once."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        add_legend(figure, dict(reversed(list(zip(reversed(labels), reversed(handles), strict=True)))))


def set_name(figure: Figure, axes: Axes, name: str, remark: str = "") -> None:
    """The model above its panel, and what to see in it.

    Args:
        figure: Its width decides where texts are cut.
        axes: The panel.
        name: The model.
        remark: A second line.
    """
    width = figure.get_figwidth() - 0.5
    lines = [shortened(name, width), *([shortened(remark, width, SMALL)] if remark else [])]
    axes.set_title("\n".join(lines), fontsize=LABEL if not remark else SMALL + 0.5, color=INK, parse_math=False)


def heads_of(number: int) -> str:
    """`1 head`, `4 heads`."""
    return count(number, "head")
