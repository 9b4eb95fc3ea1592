"""Figures: what is drawn is what the data say, nothing overlaps or is cut off, and files are written whole or not at all."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from headwise.evaluation.ablation_table import AblationResult
from headwise.evaluation.variants import Variant
from headwise.heads import HeadId, HeadScores, HeadSet, HeadwiseError, load_heads
from headwise.report.ablation_curves import BOTTOM, NONE, RANDOM, TOP, ablation_curves, draw_ablation_curves
from headwise.report.canvas import shortened, spaced, thinned
from headwise.report.distribution import distribution, draw_distribution
from headwise.report.heat_map import OUTLINED, SLIDING, draw_heat_map, heat_map
from headwise.report.needle_grid import draw_needle_grid, needle_grid, tabulate

NAN = float("nan")
PUBLISHED = Path(__file__).parents[1] / "data" / "published-head-scores"
LONG_PATH = "/home/somebody/checkpoints/a-very-long-experiment-name/meta-llama/Llama-3.1-70B-Instruct/snapshots/0123456789abcdef"
SHAPES = [(1, 1), (1, 4), (8, 8), (32, 8), (6, 128), (48, 40), (80, 64)]


def table(shape=(8, 8), runs=5, strong=3, unscored=(), sliding=(), **provenance):
    """Copy scores with `strong` heads above 0.1, in the first layers, and all others at 0 or 0.02."""
    rng = np.random.default_rng(0)
    values = np.where(rng.random(shape) < 0.3, 0.02, 0.0)
    values.ravel()[: min(strong, values.size)] = np.linspace(0.8, 0.15, min(strong, values.size))
    values[list(unscored)] = NAN
    per_run = np.repeat(values[None], runs, axis=0).astype(np.float32) if runs else None
    return HeadScores(
        values, "copy", runs=per_run, provenance={"model": "some/model", "sliding_layers": list(sliding), **provenance}
    )


def cells(lengths=(1000, 2000), depths=(0.0, 0.5, 1.0), runs=2):
    """Recall falls with depth; needle 1 is always missed."""
    return [
        {"length": length, "depth": depth, "recall": (1 - depth / 2) * (needle == 0)}
        for length in lengths
        for depth in depths
        for needle in range(runs)
    ]


def sweep(ks=(1, 2, 4), metrics=("recall", "exact", "logprob", "perplexity"), **changes):
    rows = []
    for metric in metrics:
        rows.append({"metric": metric, "kind": "none", "k": 0, "mean": 0.9})
        for k in ks:
            top, random = 0.8 / k, [0.9 - 0.02 * k, 0.9 - 0.04 * k]
            rows.append({"metric": metric, "kind": "top", "k": k, "mean": top, "low": top - 0.05, "high": top + 0.1})
            rows.append({"metric": metric, "kind": "bottom", "k": k, "mean": 0.89, "low": None, "high": None})
            rows.append({"metric": metric, "kind": "random", "k": k, "mean": sum(random) / 2, "draws": random, "sd_draws": 0.01})
    return {"summary": rows, "mode": "uniform", "scope": "answer", "model": "some/model", "items": 12} | changes


def line(axes, label):
    return next(artist for artist in axes.lines if artist.get_label() == label)


def outlined(figure):
    """(layer, head) of every outlined cell."""
    frames = [c for c in figure.axes[0].collections if c.get_label() == OUTLINED]
    centres = [path.vertices[:4].mean(axis=0) for frame in frames for path in frame.get_paths()]
    return sorted((round(float(y)), round(float(x))) for x, y in centres)


def legend(figure):
    return [text.get_text() for group in figure.legends for text in group.get_texts()]


def title(figure):
    return figure.get_suptitle().split("\n")


def assert_tidy(figure):
    """All text lies inside the picture, neighbouring tick labels keep apart, and no legend covers axes."""
    figure.canvas.draw()
    page = figure.bbox
    for axes in (a for a in figure.axes if a.get_visible()):
        texts = [axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for axis, upright in ((axes.xaxis, False), (axes.yaxis, True)):
            low, high = sorted(axis.get_view_interval())
            labels = [
                t.label1
                for t in axis.get_major_ticks()
                if low <= t.get_loc() <= high and t.label1.get_visible() and t.label1.get_text()
            ]
            texts += labels
            if any(label.get_rotation() for label in labels):
                continue  # the boxes of slanted labels overlap though the labels do not
            spans = sorted((b.y0, b.y1) if upright else (b.x0, b.x1) for b in (label.get_window_extent() for label in labels))
            assert all(before[1] <= after[0] for before, after in pairwise(spans)), [label.get_text() for label in labels]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= page.x1 + 1 and b.y1 <= page.y1 + 1 for b in boxes)
    heading = figure._suptitle.get_window_extent()
    assert heading.x0 >= 0
    assert heading.x1 <= page.x1
    for group in figure.legends:
        box = group.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= page.x1
        assert not any(box.overlaps(axes.get_tightbbox()) for axes in figure.axes if axes.get_visible())


# --- the map of all heads


def test_heat_map_shows_every_score_at_its_place():
    scores = table((4, 6), strong=3)
    figure = draw_heat_map(scores)
    (image,) = figure.axes[0].images
    np.testing.assert_array_equal(image.get_array(), scores.values)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("Head", "Layer")
    assert figure.axes[0].get_ylim() == (3.5, -0.5), "layer 0 belongs on top"
    assert figure.axes[1].get_ylabel() == "Copy score"
    assert title(figure) == ["Copy score of 4 layers × 6 heads", "some/model"]
    assert image.get_clim() == (0, 0.8)


def test_heat_map_outlines_exactly_the_retrieval_heads():
    values = np.zeros((3, 4))
    values[0, 3], values[2, 1], values[1, 1] = 0.11, 0.9, 0.1
    figure = draw_heat_map(HeadScores(values, "copy"))
    assert outlined(figure) == [(0, 3), (2, 1)]
    assert legend(figure) == ["above 0.1: 2 heads (16.7%)"]


def test_heat_map_without_a_strong_head_outlines_none():
    figure = draw_heat_map(HeadScores(np.zeros((2, 2)), "copy"))
    assert outlined(figure) == []
    assert legend(figure) == ["above 0.1: 0 heads (0.0%)"]


def test_scores_without_a_published_threshold_are_not_outlined():
    figure = draw_heat_map(HeadScores(np.array([[0.2, 0.9], [0.0, -0.1]]), "gate", provenance={"columns": "KV heads"}))
    assert outlined(figure) == []
    assert legend(figure) == []
    assert figure.axes[0].get_xlabel() == "KV head"
    assert figure.axes[0].images[0].get_clim() == (-0.1, 0.9)


def test_unscored_heads_are_hatched():
    figure = draw_heat_map(table((6, 4), unscored=[1, 4]))
    missing = np.ma.getmaskarray(figure.axes[0].images[0].get_array())
    assert missing[[1, 4]].all()
    assert missing.sum() == 8
    assert [patch.get_hatch() for patch in figure.axes[0].patches] == ["////"]
    assert "not scored: 8 heads" in legend(figure)
    assert not draw_heat_map(table((6, 4))).axes[0].patches


def test_sliding_layers_are_marked_at_their_rows():
    figure = draw_heat_map(table((6, 4), sliding=[0, 2, 5]))
    assert list(line(figure.axes[0], SLIDING).get_ydata()) == [0, 2, 5]
    assert "sliding-window layer" in legend(figure)
    assert not draw_heat_map(table((6, 4))).axes[0].lines


@pytest.mark.parametrize("shape", SHAPES)
def test_heat_map_is_legible_at_any_shape(shape):
    layers = range(0, shape[0], 2)
    figure = draw_heat_map(table(shape, unscored=range(3, shape[0], 4), sliding=layers, model=LONG_PATH))
    assert_tidy(figure)
    shown = [int(place) for place in figure.axes[0].get_yticks()]
    assert shown[0] == 0
    assert len(set(np.diff(shown))) <= 1
    width, height = figure.get_size_inches()
    assert width < 20
    assert height < 12


# --- the distribution


def test_distribution_falls_from_the_strongest_head_down():
    scores = table((8, 8), strong=3, unscored=[7])
    figure = draw_distribution(scores)
    ranked, side = figure.axes
    curve = line(ranked, "copy score")
    np.testing.assert_array_equal(curve.get_xdata(), np.arange(1, 57))
    np.testing.assert_array_equal(curve.get_ydata(), np.sort(scores.values[:7], axis=None)[::-1])
    frequency = line(ranked, "activation frequency")
    np.testing.assert_array_equal(frequency.get_ydata(), np.sort(scores.values[:7] > 0, axis=None)[::-1])
    assert ranked.get_xscale() == "log"
    assert side.get_xlabel() == "Share of heads (%)"
    assert legend(figure) == ["activation frequency", "copy score", "score 0.1 (3 heads above)", "score 0.5 (1 head above)"]


def test_distribution_shares_are_those_of_the_card():
    values = np.array([[0.0, 0.0, 0.05, 0.1], [0.49, 0.5, 0.7, NAN]])
    side = draw_distribution(HeadScores(values, "copy")).axes[1]
    assert [label.get_text() for label in side.get_yticklabels()] == ["0", "(0, 0.1)", "[0.1, 0.5)", "≥ 0.5"]
    np.testing.assert_allclose([bar.get_width() for bar in side.patches], np.array([2, 1, 2, 2]) / 7 * 100)
    assert [text.get_text() for text in side.texts] == ["28.6% (2)", "14.3% (1)", "28.6% (2)", "28.6% (2)"]


def test_distribution_of_other_scores_has_neither_thresholds_nor_shares():
    figure = draw_distribution(HeadScores(np.array([[0.2, 0.9], [0.0, -0.1]]), "gate"))
    (axes,) = figure.axes
    assert len(axes.lines) == 1
    assert axes.get_ylabel() == "Gate score"


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("runs", [0, 1, 3])
def test_distribution_is_legible_at_any_shape(shape, runs):
    figure = draw_distribution(table(shape, runs=runs, unscored=range(3, shape[0], 4), model=LONG_PATH))
    assert_tidy(figure)
    assert len([a for a in figure.axes[0].lines if a.get_label() == "activation frequency"]) == (runs > 0)


# --- the needle grid


def test_needle_grid_averages_each_cell():
    figure = draw_needle_grid(cells())
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.5, 0.5], [0.375, 0.375], [0.25, 0.25]])
    assert axes.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1,000", "2,000"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "50", "100"]
    assert [text.get_text() for text in axes.texts] == ["0.50", "0.50", "0.38", "0.38", "0.25", "0.25"]
    assert title(figure) == ["Needle recall, mean 0.38", "6 cells, 2 runs per cell"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Context length (tokens)", "Needle depth (%)")


def test_needle_grid_tells_what_was_not_run():
    figure = draw_needle_grid(cells()[:-3])
    assert title(figure)[1] == "5 cells, 1 to 2 runs per cell"
    assert legend(figure) == ["not run"]
    assert np.ma.getmaskarray(figure.axes[0].images[0].get_array()).tolist() == [[False, False], [False, False], [False, True]]
    assert legend(draw_needle_grid(cells())) == []


def test_rows_and_columns_ascend_whatever_the_order_of_runs():
    shuffled = [cells()[i] for i in np.random.default_rng(0).permutation(12)]
    assert tabulate(shuffled)[:2] == ([1000, 2000], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(tabulate(shuffled)[2], tabulate(cells())[2])


@pytest.mark.parametrize(("lengths", "depths"), [(1, 1), (1, 10), (20, 1), (20, 10), (40, 10), (3, 3)])
@pytest.mark.slow
def test_needle_grid_is_legible_at_any_size(lengths, depths):
    figure = draw_needle_grid(cells([int(n) for n in np.linspace(1000, 50000, lengths)], np.linspace(0, 1, depths).tolist()))
    assert_tidy(figure)
    assert figure.axes[0].images[0].get_array().shape == (depths, lengths)


@pytest.mark.parametrize("rows", [[], [{"length": 5, "depth": 0.5}], [{"length": 5, "depth": None, "recall": 1}], [3]])
def test_rows_that_make_no_grid_are_refused(rows):
    with pytest.raises(HeadwiseError, match=r"^[^\n]*needle[^\n]*$"):
        draw_needle_grid(rows)


# --- ablation curves


def test_ablation_curves_show_the_rows():
    figure = draw_ablation_curves(sweep())
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "Unigram recall\n(share of words)",
        "Exact match\n(share of items)",
        "Gold log-probability\n(nats per gold answer)",
        "Perplexity\n(plain text)",
    ]
    for axes in figure.axes:
        top, random, bottom = (line(axes, name) for name in (TOP, RANDOM, BOTTOM))
        assert list(top.get_xdata()) == [1, 2, 4]
        np.testing.assert_allclose(top.get_ydata(), [0.8, 0.4, 0.2])
        np.testing.assert_allclose(random.get_ydata(), [0.87, 0.84, 0.78])
        np.testing.assert_allclose(bottom.get_ydata(), 0.89)
        assert list(line(axes, NONE).get_ydata()) == [0.9, 0.9]
        assert line(axes, NONE).get_linestyle() == "--"
        assert axes.get_xlabel() == "Heads ablated, K"
    assert title(figure) == ["some/model", "Ablating heads: mode uniform, scope answer", "12 items, 2 random draws per K"]
    assert sorted(legend(figure)) == sorted([TOP, RANDOM, BOTTOM, NONE])


def test_ablation_intervals_draws_and_their_range():
    axes = draw_ablation_curves(sweep()).axes[0]
    band, intervals = axes.collections
    np.testing.assert_allclose([segment[:, 1] for segment in intervals.get_segments()], [[0.75, 0.9], [0.35, 0.5], [0.15, 0.3]])
    edge = band.get_paths()[0].vertices
    assert (edge[:, 1].min(), edge[:, 1].max()) == (0.9 - 0.16, 0.9 - 0.02)
    points = next(a for a in axes.lines if a.get_marker() == "o" and a.get_linestyle() == "None")
    np.testing.assert_allclose(sorted(points.get_ydata()), sorted([0.88, 0.86, 0.86, 0.82, 0.82, 0.74]))


def test_only_measured_metrics_get_a_panel():
    figure = draw_ablation_curves(sweep(metrics=("recall", "perplexity", "exact")))
    assert [axes.get_ylabel().split("\n")[0] for axes in figure.axes if axes.get_visible()] == [
        "Unigram recall",
        "Exact match",
        "Perplexity",
    ]


def test_an_undefined_mean_leaves_a_gap():
    result = sweep(metrics=("recall",))
    next(row for row in result["summary"] if row["kind"] == "top" and row["k"] == 2)["mean"] = None
    assert list(line(draw_ablation_curves(result).axes[0], TOP).get_xdata()) == [1, 4]


def test_scales_follow_the_numbers():
    result = sweep(ks=(1, 2, 5, 10, 20, 50, 100), metrics=("perplexity",))
    result["summary"] = [row for row in result["summary"] if row["kind"] != "random"]
    far = draw_ablation_curves(result).axes[0]
    assert (far.get_xscale(), far.get_yscale()) == ("log", "log")
    assert far.get_ylabel() == "Perplexity\n(plain text, log scale)"
    near = draw_ablation_curves(sweep(ks=(1, 2, 4), metrics=("perplexity",))).axes[0]
    assert (near.get_xscale(), near.get_yscale()) == ("linear", "linear")
    assert list(near.get_xticks()) == [1, 2, 4]


def test_perplexity_names_its_own_scope_and_draws():
    result = sweep(metrics=("recall", "perplexity"), perplexity={"scope": "all"})
    for row in result["summary"]:
        if row["metric"] == "perplexity" and row.get("draws"):
            row["draws"] = row["draws"][:1]
    figure = draw_ablation_curves(result)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "Unigram recall\n(share of words)",
        "Perplexity, scope all\n(plain text, 1 draw)",
    ]


@pytest.mark.parametrize("ks", [(4,), (1, 2, 3, 4, 8), (2, 5, 10, 15, 20, 30, 50, 100), tuple(range(1, 60))])
@pytest.mark.parametrize("metrics", [("recall",), ("recall", "exact", "logprob", "perplexity")])
def test_ablation_curves_are_legible(ks, metrics):
    assert_tidy(draw_ablation_curves(sweep(ks, metrics, model=LONG_PATH)))


def test_what_the_sweep_writes_is_what_the_figure_reads():
    shape, rng = (2, 3), np.random.default_rng(0)
    kinds = [("none", 0, 0), ("top", 1, 0), ("bottom", 1, 0), ("random", 1, 0), ("random", 1, 1)]
    variants = tuple(Variant(kind, k, draw, HeadSet.of([(draw, i)] * k, shape)) for i, (kind, k, draw) in enumerate(kinds[:3]))
    variants += tuple(Variant(kind, k, draw, HeadSet.of([(draw, 0)], shape)) for kind, k, draw in kinds[3:])
    values = {metric: rng.random((5, 4)) for metric in ("recall", "exact", "logprob")}
    provenance = {"model": "tiny", "mode": "zero", "scope": "answer"}
    result = AblationResult(variants, ({},) * 4, values, rng.random((5, 2)), 0, provenance)
    figure = draw_ablation_curves(result.to_json())
    assert len(figure.axes) == 4
    for axes, metric in zip(figure.axes, values, strict=False):
        np.testing.assert_allclose(line(axes, TOP).get_ydata(), values[metric][1].mean())
        np.testing.assert_allclose(line(axes, RANDOM).get_ydata(), values[metric][3:].mean())
    assert figure.axes[3].get_ylabel().startswith("Perplexity, scope all")


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"summary": [], "mode": "zero", "scope": "all", "model": "m", "items": 1},
        sweep() | {"summary": [{"metric": "speed", "kind": "top", "k": 1, "mean": 1.0}]},
        sweep() | {"summary": [{"metric": "recall", "kind": "best", "k": 1, "mean": 1.0}]},
        sweep() | {"summary": [{"metric": "recall", "kind": "top", "k": None, "mean": 1.0}]},
        sweep() | {"summary": [{"metric": "recall", "kind": "top", "k": 1, "mean": "high"}]},
        sweep() | {"summary": [{"metric": "recall", "kind": "top", "k": 1, "mean": None}]},
        sweep() | {"summary": [7]},
    ],
)
def test_broken_ablation_results_are_refused_in_one_line(broken):
    with pytest.raises(HeadwiseError, match=r"^[^\n]*ablation result[^\n]*$"):
        draw_ablation_curves(broken)


# --- writing


WRITERS = [
    (heat_map, table()),
    (distribution, table()),
    (needle_grid, cells()),
    (ablation_curves, sweep()),
]
START = {".png": b"\x89PNG\r\n", ".svg": b"<?xml"}


@pytest.mark.slow
@pytest.mark.parametrize(("write", "data"), WRITERS)
@pytest.mark.parametrize("suffix", [".png", ".svg", ".PNG"])
def test_figures_are_written_whole_and_leave_nothing_else(write, data, suffix, tmp_path):
    path = tmp_path / "new folder" / f"figure{suffix}"
    write(data, path)
    assert path.read_bytes().startswith(START[suffix.lower()])
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("write", "data"), WRITERS)
@pytest.mark.parametrize("name", ["figure.pdf", "figure", "figure.png.gz", ".png"])
def test_other_suffixes_are_refused_before_anything_is_drawn(write, data, name, tmp_path):
    with pytest.raises(HeadwiseError, match=r"^cannot write a figure to '.*'; end its name with \.png or \.svg$"):
        write(data, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(b"old")
    with pytest.raises(HeadwiseError, match=r"^no head has a copy score"):
        heat_map(HeadScores(np.full((2, 2), NAN), "copy"), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path):
    (tmp_path / "map.png").mkdir()
    with pytest.raises(HeadwiseError, match=r"^could not write [^\n]*; the file is as it was before$"):
        heat_map(table(), tmp_path / "map.png")
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_users_settings_neither_matter_nor_change(suffix, tmp_path):
    heat_map(table(), tmp_path / f"plain{suffix}")
    with matplotlib.rc_context({"axes.grid": True, "font.size": 30, "figure.facecolor": "black", "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        heat_map(table(), tmp_path / f"styled{suffix}")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / f"plain{suffix}").read_bytes() == (tmp_path / f"styled{suffix}").read_bytes()


def test_dollars_in_a_model_name_are_dollars():
    figure = draw_heat_map(table(model=r"/data/$\nosuchcommand$ x"))
    figure.canvas.draw()  # as a formula it could not be drawn
    assert title(figure)[1] == r"$\nosuchcommand$ x"


@pytest.mark.slow
def test_drawing_needs_no_pyplot_and_importing_no_matplotlib():
    code = (
        "import sys; import headwise.report.distribution, headwise.report.needle_grid, headwise.report.ablation_curves, headwise.report.tables\n"
        "assert 'matplotlib' not in sys.modules, 'imported early'\n"
        "import numpy as np; from headwise.heads import HeadScores; from headwise.report.heat_map import draw_heat_map\n"
        "figure = draw_heat_map(HeadScores(np.eye(3), 'copy')); figure.canvas.draw()\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
        "assert type(figure.canvas).__name__ == 'FigureCanvasAgg'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- published files


@pytest.mark.skipif(not PUBLISHED.exists(), reason="published head scores are not here")
@pytest.mark.slow
def test_published_files_can_be_drawn(tmp_path):
    heads = [load_heads(path) for path in sorted(PUBLISHED.rglob("*")) if path.suffix in (".gz", ".tsv")]
    assert {scores.score for scores in heads} == {"copy", "gate"}
    for scores in heads:
        assert_tidy(draw_heat_map(scores))
        assert_tidy(draw_distribution(scores))
        strong = (
            [tuple(head) for head in map(HeadId._make, np.argwhere(scores.values > 0.1).tolist())]
            if scores.score == "copy"
            else []
        )
        assert outlined(draw_heat_map(scores)) == strong


# --- the rules that keep labels apart


@pytest.mark.parametrize(
    ("count", "cell", "wanted"), [(4, 0.4, [0, 1, 2, 3]), (5, 0.2, [0, 2, 4]), (17, 0.05, [0, 8, 16]), (1, 0.01, [0])]
)
def test_thinned(count, cell, wanted):
    assert thinned(count, cell).tolist() == wanted


@pytest.mark.parametrize(
    ("places", "wanted"),
    [([0, 1, 2], [0, 1, 2]), ([0, 0.4, 1], [0, 2]), ([0, 1, 1.5], [0, 2]), ([3], [0]), ([0, 0.5, 1, 1.5, 2], [0, 2, 4])],
)
def test_spaced_keeps_the_last_and_the_distance(places, wanted):
    assert spaced(places, [1.0] * len(places)) == wanted


def test_shortened_keeps_both_ends():
    assert shortened("short", 3) == "short"
    cut = shortened("meta-llama/" + "x" * 200 + "/Instruct", 3)
    assert cut.startswith("meta")
    assert cut.endswith("/Instruct")
    assert 12 <= len(cut) <= 40
    assert cut.count("…") == 1
