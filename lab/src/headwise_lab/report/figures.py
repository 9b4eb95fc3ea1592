"""Figures of `headwise lab properties`, second part: when heads copy, what ablating them costs, and the negative control."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from headwise.report.canvas import BLUE, GREY, INK, RED, SMALL, add_legend, new_figure, shortened, style
from headwise.report.numbers import RETRIEVAL
from headwise_lab.report.panels import (
    GREEN,
    NARROW,
    ON_STRONG,
    ORANGE,
    WIDE,
    Data,
    Panel,
    cycle,
    draw_bars,
    heads_of,
    intrinsic_panels,
    legend_of,
    set_name,
    sparse_panels,
    universal_panels,
)
from headwise_lab.report.real_panels import mode_panels, paraphrased_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 30  # steps in the raster
PAPER_SHARE = 100 * 50 / 1024  # of the heads, masked in the paper
CONTROLS = {"any_layer": (GREEN, "random, any layer"), "norm": (ORANGE, "random, same norm")}
TASKS = {
    ("steps", "answer"): "two-hop, steps written",
    ("direct", "answer"): "two-hop, direct",
    ("closed_book", "answer"): "closed book",
    ("contradiction", "answer"): "contradicted fact",
    ("steps", "all"): "steps, ablated everywhere",
    ("closed_book", "all"): "closed book, everywhere",
}


def panels_of(key: str, data: Data) -> list[Panel]:
    """The panels of one property.

    Args:
        key: Of the property.
        data: Its data, see `Property`.

    Returns:
        Its panels; none if nothing was measured, or the property has no figures.
    """
    makers: dict[str, Callable[[Data], list[Panel]]] = {
        "universal": universal_panels,
        "sparse": sparse_panels,
        "intrinsic": intrinsic_panels,
        "dynamic": dynamic_panels,
        "causal": causal_panels,
        "paraphrased": paraphrased_panels,
        "reasoning": reasoning_panels,
        "control": control_panels,
    }
    return makers[key](data) if key in makers else []


def dynamic_panels(data: Data) -> list[Panel]:
    """Frequency against score per model, a raster of steps, and always-on heads beside the paper's."""
    found = []
    for model in data["models"]:
        text = f"{model['name']}: activation frequency against score; always on: {', '.join(model['always_on']) or 'none'}."
        found.append(Panel(f"frequency-{model['name']}", partial(draw_frequency, model), text))
    traced = [model for model in data["models"] if model["steps"]]
    if traced:
        text = f"{traced[0]['name']}: which retrieval heads copy at which step of the answer, first needles. "
        text += f"{traced[0]['steps']['distinct_sets']} different sets in {traced[0]['steps']['steps']} steps of all answers."
        found.append(Panel("dynamic-steps", partial(draw_raster, traced[0]), text))
    if data["models"]:
        ours = [f"{m['name']} {len(m['always_on'])} of {m['all_heads']}" for m in data["models"]]
        text = f"Always-on heads: {', '.join(ours)}; in the paper 12 of 1,024 for Llama-2-7B-80K."
        found.append(Panel("dynamic-always", partial(draw_always, data), text))
    return found


def draw_frequency(model: Data) -> Figure:
    """Every head that ever copies; none can be below the diagonal."""
    figure = new_figure(NARROW, 3.1)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", zorder=0)
    points = list(zip(model["score"], model["frequency"], strict=True))
    groups = (
        ("up to 0.1", GREY, [p for p in points if p[0] <= RETRIEVAL]),
        ("over 0.1", BLUE, [p for p in points if p[0] > RETRIEVAL and p[1] < 1]),
        ("always on", RED, [p for p in points if p[1] == 1]),
    )
    for label, colour, chosen in groups:
        axes.plot(
            [p[0] for p in chosen],
            [p[1] for p in chosen],
            "o",
            color=colour,
            markersize=5.5,
            alpha=0.75,
            label=label,
            clip_on=False,
        )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.05)
    style(axes, "Copy score", "Activation frequency")
    set_name(figure, axes, model["name"], f"{len(model['always_on'])} always on · {model['retrieval_heads']} over 0.1")
    legend_of(figure, axes)
    return figure


def draw_raster(model: Data) -> Figure:
    """Retrieval heads by steps of several answers, filled where the head copies the token that is said."""
    from matplotlib.patches import Rectangle

    heads, shown = model["steps"]["heads"], _columns(model["steps"]["answers"])
    figure = new_figure(WIDE + 0.6, 0.17 * len(heads) + 1.5)
    axes = figure.subplots()
    ticks: list[tuple[float, str]] = []
    place = 0.0
    for number, answer in enumerate(shown):
        for token, active in zip(answer["tokens"], answer["active"], strict=True):
            ticks.append((place, token.strip() or "␣"))
            for row in range(len(heads)):
                box = ((place - 0.5, row - 0.5), 1, 1)
                axes.add_patch(
                    Rectangle(*box, facecolor=RED if number % 2 == 0 else BLUE, alpha=1.0 if row in active else 0.07, linewidth=0)
                )
            place += 1
        place += 0.6
    axes.set_xlim(-0.7, place - 0.9)
    axes.set_ylim(len(heads) - 0.4, -0.6)
    axes.set_xticks([x for x, _ in ticks], [shortened(text, 0.7, 7) for _, text in ticks], rotation=90, parse_math=False)
    axes.set_yticks(range(len(heads)), heads)
    style(axes, "Tokens of the answer; colours change with the needle", "Retrieval head")
    axes.tick_params(labelsize=7, length=0)
    axes.spines[:].set_visible(False)
    set_name(figure, axes, model["name"])
    return figure


def _columns(answers: Sequence[Data]) -> list[Data]:
    """The first answers that have room together."""
    shown: list[Data] = []
    for answer in answers:
        if shown and sum(len(a["tokens"]) for a in shown) + len(answer["tokens"]) > COLUMNS:
            break
        shown.append(answer)
    return shown


def draw_always(data: Data) -> Figure:
    """Share of heads with frequency 1."""
    ours = [(m["name"], 100 * len(m["always_on"]) / m["all_heads"]) for m in data["models"]]
    theirs = [(m["name"], 100 * m["always_on"] / m["heads"]) for m in data["paper"]]
    return draw_bars(
        [(name, value, value) for name, value in ours],
        [(name, value, value) for name, value in theirs],
        "Always-on heads, % of all heads",
        ("",),
    )


def causal_panels(data: Data) -> list[Panel]:
    """Recall against the number of heads ablated, per model; perplexity of all."""
    found = []
    for model in data["models"]:
        k = model["halved_at"]
        text = (
            f"{model['name']}: needle recall with the strongest heads ablated, with as many random heads, and with the weakest. "
        )
        text += f"It is halved at {heads_of(k)}." if k else "No number of heads that was ablated halves it."
        found.append(Panel(f"ablation-{model['name']}", partial(draw_recall, model), text))
    found += mode_panels(data)
    if data["models"]:
        found.append(
            Panel("causal-perplexity", partial(draw_perplexity, data), "Perplexity of plain text with the same heads ablated.")
        )
    return found


def draw_recall(model: Data) -> Figure:
    """Top K in red with intervals, random in grey with the range of draws, bottom K in blue; the paper's statement as a box."""
    from matplotlib.patches import Rectangle

    longer = any(row["kind"] in CONTROLS for row in model["rows"])
    figure = new_figure(NARROW + 0.2, 3.15 + 0.55 * longer)  # room for two more lines of the legend
    axes = figure.subplots()
    share = 100 / model["heads"]
    rows = {kind: _rows(model, "recall", kind) for kind in ("none", "top", "random", "bottom")}
    axes.axhline(rows["none"][0]["mean"], color=INK, linestyle="--", linewidth=1, label="whole model")
    random, top, bottom = rows["random"], rows["top"], rows["bottom"]
    x = [share * row["k"] for row in top]
    axes.fill_between(
        x, [min(r["draws"]) for r in random], [max(r["draws"]) for r in random], color=GREY, alpha=0.25, linewidth=0
    )
    axes.plot(x, [r["mean"] for r in random], color=GREY, marker="D", markersize=4, linewidth=1.6, label="random")
    for kind, (colour, label) in CONTROLS.items():
        if more := _rows(model, "recall", kind):
            axes.plot(x, [r["mean"] for r in more], ":", color=colour, marker="x", markersize=4, linewidth=1.4, label=label)
    axes.plot(
        x,
        [r["mean"] for r in bottom],
        color=BLUE,
        marker="s",
        markersize=4,
        markerfacecolor="none",
        linewidth=1.2,
        label="weakest",
    )
    axes.vlines(x, [r["low"] for r in top], [r["high"] for r in top], color=RED, linewidth=1.4)
    axes.plot(x, [r["mean"] for r in top], color=RED, marker="o", markersize=5, linewidth=1.8, label="strongest")
    box = Rectangle(
        (PAPER_SHARE * 0.93, 0), PAPER_SHARE * 0.14, 0.5, facecolor=ORANGE, alpha=0.55, linewidth=0, label="paper: < 0.5"
    )
    axes.add_patch(box)
    axes.set_xscale("log")
    axes.set_xticks(x, [str(row["k"]) for row in top])
    axes.set_xticks([], minor=True)
    axes.set_ylim(-0.04, 1.06)
    style(axes, f"Heads ablated of {model['heads']} (log)", "Needle recall")
    set_name(figure, axes, model["name"], f"{model['items']} prompts, {model['needles']} needles")
    legend_of(figure, axes)
    return figure


def draw_perplexity(data: Data) -> Figure:
    """Perplexity as a multiple of the whole model's."""
    from matplotlib.lines import Line2D

    figure = new_figure(WIDE, 3.2)
    axes = figure.subplots()
    for (colour, marker), model in zip(cycle(len(data["models"])), data["models"], strict=True):
        whole = _rows(model, "perplexity", "none")[0]["mean"]
        for kind, line in (("top", "-"), ("random", ":")):
            rows = _rows(model, "perplexity", kind)
            label = model["name"] if kind == "top" else None
            axes.plot(
                [100 * r["k"] / model["heads"] for r in rows],
                [r["mean"] / whole for r in rows],
                line,
                color=colour,
                marker=marker,
                markersize=4,
                label=label,
            )
    axes.axhline(1.1, color=GREY, linestyle="--", linewidth=1, zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    shares = [100 * row["k"] / model["heads"] for model in data["models"] for row in _rows(model, "perplexity", "top")]
    places = [t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50) if min(shares) * 0.9 <= t <= max(shares) * 1.1]  # models differ in their shares
    axes.set_xticks(places, [f"{place:g}" for place in places])
    high = axes.get_ylim()[1]
    ticks = [t for t in (1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 30, 100) if t <= high * 1.05]
    axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    style(axes, "Heads ablated, % of all (log scale)", "Perplexity / whole model's")
    handles, labels = axes.get_legend_handles_labels()
    keys = dict(zip(labels, handles, strict=True))
    keys |= {"strongest heads": Line2D([], [], color=INK), "random heads": Line2D([], [], color=INK, linestyle=":")}
    add_legend(figure, keys)
    return figure


def _rows(model: Data, metric: str, kind: str) -> list[Data]:
    """Rows of an ablation's summary by K, those with a value only."""
    found = [row for row in model["rows"] if (row["metric"], row["kind"]) == (metric, kind) and row["mean"] is not None]
    return sorted(found, key=lambda row: row["k"])


def reasoning_panels(data: Data) -> list[Panel]:
    """Share right per task with and without heads, and what contradicted answers follow."""
    found = []
    for model in data["models"]:
        text = f"{model['name']}: share of right answers of the whole model, and with {heads_of(model['k'])} ablated: random, weakest, strongest. "
        text += "Contradicted fact: the passage's value counts as right."
        if any(task["scope"] == "all" for task in model["tasks"]):
            text += " Ablated everywhere: while the model reads, too, not only while it answers."
        found.append(Panel(f"reasoning-{model['name']}", partial(draw_tasks, model), text))
        for task in model["tasks"]:
            if task["task"] == "contradiction" and "top" in task["means"]:
                text = f"{model['name']}: where answers come from when a passage contradicts what the model knows by heart."
                found.append(Panel(f"sources-{model['name']}", partial(draw_sources, model["name"], task), text))
    return found


def draw_tasks(model: Data) -> Figure:
    """One row per task: whole model, and without random, the weakest, the strongest heads."""
    tasks = model["tasks"]
    figure = new_figure(WIDE, 0.38 * len(tasks) + 1.45)
    axes = figure.subplots()
    for place, task in enumerate(tasks):
        rows = {row["kind"]: row for row in task["rows"] if row["metric"] == "exact" and row["k"] in (0, model["k"])}
        whole = rows["none"]["mean"]
        if "top" in rows:
            top, random = rows["top"], rows["random"]
            axes.plot([whole, top["mean"]], [place] * 2, color=RED, alpha=0.3, linewidth=3, zorder=1)
            axes.plot(
                [min(random["draws"]), max(random["draws"])],
                [place] * 2,
                color=GREY,
                alpha=0.5,
                linewidth=6,
                solid_capstyle="butt",
                zorder=2,
            )
            axes.plot([random["mean"]], [place], "D", color=GREY, markersize=6, label="random, all draws", zorder=3)
            if "any_layer" in rows:
                axes.plot([rows["any_layer"]["mean"]], [place], "x", color=GREEN, markersize=6, label="random, any layer", zorder=4)
            axes.plot([rows["bottom"]["mean"]], [place], "v", color=BLUE, markersize=6, label="weakest", zorder=4, clip_on=False)
            axes.plot([top["low"], top["high"]], [place] * 2, color=RED, linewidth=1.4, zorder=4)
            axes.plot([top["mean"]], [place], "o", color=RED, markersize=7.5, label="strongest, 95 % CI", zorder=5, clip_on=False)
        axes.plot(
            [whole], [place], "o", color=INK, markerfacecolor="none", markersize=9, label="whole model", zorder=6, clip_on=False
        )
    axes.set_yticks(range(len(tasks)), [TASKS.get((t["task"], t["scope"]), t["task"]) for t in tasks])
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    style(axes, "Share of right answers", "")
    axes.tick_params(axis="y", length=0)
    removed = any(row["kind"] == "top" for task in tasks for row in task["rows"])
    remark = f"{heads_of(model['k'])} of {model['heads']} ablated" if removed else "too few right answers to lose any"
    set_name(figure, axes, model["name"], remark)
    legend_of(figure, axes)
    return figure


def draw_sources(name: str, task: Data) -> Figure:
    """Stacked shares: the passage, memory, anything else.

    Args:
        name: Of the model.
        task: Its entry for contradicted facts, see `reasoning.measure`.
    """
    from matplotlib.patches import Patch

    figure = new_figure(WIDE, 2.05)
    axes = figure.subplots()
    kinds = [
        (k, label)
        for k, label in (("none", "whole model"), ("random", "random ablated"), ("top", "strongest ablated"))
        if k in task["means"]
    ]
    colours = {"the passage": BLUE, "memory": ORANGE, "something else": GREY}
    for place, (kind, _) in enumerate(kinds):
        passage, memory = task["means"][kind][:2]
        left = 0.0
        for value, (label, colour) in zip((passage, memory, 1 - passage - memory), colours.items(), strict=True):
            axes.barh(place, value, left=left, height=0.62, color=colour, alpha=0.45 if label == "something else" else 0.9)
            if value > 0.07:
                ink = INK if label == "something else" else ON_STRONG if label == "memory" else "#FFFFFF"
                axes.text(left + value / 2, place, f"{100 * value:.0f}", ha="center", va="center", fontsize=SMALL, color=ink)
            left += value
    axes.set_yticks(range(len(kinds)), [label for _, label in kinds])
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    style(axes, "Answers to contradicted facts follow", "")
    axes.tick_params(axis="y", length=0)
    set_name(figure, axes, name)
    add_legend(
        figure,
        {label: Patch(facecolor=colour, alpha=0.45 if label == "something else" else 0.9) for label, colour in colours.items()},
    )
    return figure


def control_panels(data: Data) -> list[Panel]:
    """Highest scores of the controls beside those of the trained models."""
    done = [row for row in data["models"] if "forced_max" in row]
    if not done:
        return []
    texts = [f"{row['name']} {row['forced_max']:.3f}" for row in done] + [
        f"{row['name']} {row['max']:.2f}" for row in data["trained"]
    ]
    return [
        Panel(
            "control-scores", partial(draw_control, done, data["trained"]), f"Highest copy score of any head: {', '.join(texts)}."
        )
    ]


def draw_control(controls: Sequence[Mapping[str, Any]], trained: Sequence[Mapping[str, Any]]) -> Figure:
    """Bars with the threshold of a retrieval head.

    Args:
        controls: Rows with name and forced_max.
        trained: Rows with name and max.
    """
    rows = [(row["name"], row["forced_max"], GREY) for row in controls] + [(row["name"], row["max"], RED) for row in trained]
    figure = new_figure(WIDE, 0.27 * len(rows) + 0.95)
    axes = figure.subplots()
    for place, (_, value, colour) in enumerate(rows):
        axes.barh(place, value, height=0.6, color=colour)
        axes.text(
            (value if value > RETRIEVAL else RETRIEVAL) + 0.015, place, f"{value:.2f}", va="center", fontsize=SMALL, color=INK
        )
    axes.axvline(RETRIEVAL, color=INK, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [shortened(name, 1.5, SMALL) for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.set_xlim(0, 1.12)
    style(axes, "Highest copy score of any head", "")
    axes.tick_params(axis="y", length=0)
    return figure
