"""Tables and summary lines: every number comes from the scores, and what a file cannot tell is not made up."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from headwise.heads import HeadScores, HeadwiseError, load_heads
from headwise.report.numbers import interval, public_name, scored, shares
from headwise.report.tables import ablation_table, head_table, summary_lines

NAN = float("nan")
PUBLISHED = Path(__file__).parents[1] / "data" / "published-head-scores"


def rendered(table, width=80):
    """Lines of text without trailing blanks."""
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(table)
    return [line.rstrip() for line in console.export_text().splitlines() if line.strip()]


def cells_of(table, width=80):
    """Words of every line below the header."""
    lines = rendered(table, width)
    start = next(i for i, line in enumerate(lines) if line.startswith(("Rank", "Metric")))
    return [line.split() for line in lines[start + 1 :]]


def table(**changes):
    """2 layers x 3 heads over 4 runs; L1H2 is always on, L0H1 sometimes, L0H0 is not scored."""
    runs = np.zeros((4, 2, 3), dtype=np.float32)
    runs[:, 1, 2] = [0.5, 0.75, 1.0, 0.75]
    runs[:, 0, 1] = [0.0, 0.0, 0.5, 0.5]
    runs[:, 0, 0] = NAN
    options = {
        "values": runs.astype(float).mean(axis=0),
        "score": "copy",
        "runs": runs,
        "provenance": {"model": "some/model", "sliding_layers": [0], "runs": 5, "solved": 4},
    }
    return HeadScores(**(options | changes))


def plain(values, score="copy", **provenance):
    return HeadScores(np.asarray(values, dtype=float), score, provenance=provenance)


# --- the strongest heads


def test_head_table_ranks_heads():
    rows = cells_of(head_table(table(), 3))
    assert rows[0][:3] == ["1", "L1H2", "0.750"]
    assert rows[0][-2:] == ["100%", "full"]
    assert rows[1][:3] == ["2", "L0H1", "0.250"]
    assert rows[1][-2:] == ["50%", "sliding"]
    assert rows[2] == ["3", "L0H2", "0.000", "0.000", "to", "0.000", "0%", "sliding"]
    assert len(rows) == 3
    heading = rendered(head_table(table(), 3))
    assert heading[:2] == ["Strongest heads by copy score", "some/model"]
    assert "95 % CI over runs" in heading[2]


def test_head_table_lists_all_heads_if_there_are_fewer_and_none_unscored():
    rows = cells_of(head_table(table(), 100))
    assert len(rows) == 5
    assert not any("L0H0" in row for row in rows)


def test_head_table_without_runs_leaves_them_open():
    assert cells_of(head_table(plain([[0.1, 0.9]]), 1)) == [["1", "L0H1", "0.900", "–", "–", "–"]]


def test_head_table_of_one_run_has_no_interval():
    one = table(runs=table().runs[:1], values=table().runs[0].astype(float))
    assert cells_of(head_table(one, 1)) == [["1", "L1H2", "0.500", "–", "100%", "full"]]


def test_head_table_calls_columns_by_their_name():
    lines = rendered(head_table(plain([[0.1, 0.9]], "gate", columns="KV heads", imported_from="x.tsv")))
    assert lines[:2] == ["Strongest KV heads by gate score", "x.tsv"]
    assert lines[2].split()[:5] == ["Rank", "KV", "head", "Gate", "score"]


def test_a_model_name_is_never_markup():
    assert rendered(head_table(plain([[0.1, 0.9]], model="[bold]x[/bold]")))[1] == "[bold]x[/bold]"


@pytest.mark.parametrize("top", [0, -1])
def test_no_rows_are_refused(top):
    with pytest.raises(HeadwiseError, match=rf"^the number of heads to list must be at least 1; got {top}$"):
        head_table(table(), top)


def test_interval_covers_the_mean_and_stays_in_the_data():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        sample = (rng.random(60) < 0.3).astype(np.float32)
        low, high = interval(sample, seed=seed)
        assert 0 <= low <= sample.mean() <= high <= 1
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99
    assert interval(np.array([0.5])) is None
    assert interval(np.array([NAN, 0.5])) is None
    assert interval(np.array([NAN, 0.5, 0.5])) == (0.5, 0.5)
    assert interval(sample) == interval(sample)


# --- summary lines


def test_summary_tells_everything_the_file_knows():
    assert summary_lines(table())[:4] == [
        "copy scores of 5 heads (2 layers × 3), 1 not scored",
        "above 0.1: 2 heads (40.0%)",
        "above 0.5: 1 head (20.0%)",
        "Gini 0.700 (0: all heads score the same; 1: one head has the whole score)",
    ]
    assert summary_lines(table())[4].startswith("split-half reliability 0.")
    assert summary_lines(table())[4].endswith("(mean correlation of random halves of 4 runs)")
    assert summary_lines(table())[5:] == [
        "4 of 5 runs solved (80.0%)",
        "always on (active in every successful run): 1 head: L1H2",
    ]


def test_summary_names_the_tables_and_a_guessed_shape():
    tables = {"lift": np.ones((2, 4)), "mean_gates": np.ones((2, 2)), "layer_order": np.ones(2)}
    scores = HeadScores(np.arange(8.0).reshape(2, 4), "semantic", provenance={"shape_guessed": True}, tables=tables)
    assert summary_lines(scores)[1:3] == [
        "the shape is a guess from the heads that the file lists; state the model's: headwise convert FILE NEW.json --shape LAYERSxHEADS",
        "tables: lift [layer, head], mean_gates [layer, KV head], layer_order [layer]",
    ]
    assert not any("table" in line or "guess" in line for line in summary_lines(table()))


def test_summary_without_runs():
    assert summary_lines(plain([[0.1, 0.9]]))[-1] == "no per-run values: reliability and activation frequency are unknown"
    assert not any("solved" in line or "always" in line for line in summary_lines(plain([[0.1, 0.9]])))


def test_summary_of_imported_runs_does_not_invent_how_many_were_solved():
    lines = summary_lines(table(provenance={"imported_from": "x.json"}))
    assert not any("solved" in line for line in lines)
    assert lines[-1].endswith("1 head: L1H2")


def test_summary_of_one_run_has_no_reliability():
    one = table(runs=table().runs[:1], values=table().runs[0].astype(float))
    assert "split-half reliability not defined (mean correlation of random halves of 1 run)" in summary_lines(one)


@pytest.mark.parametrize(
    ("low", "line"), [(0.0, "Gini not defined: all scores are 0"), (-0.5, "Gini not defined: some scores are below 0")]
)
def test_gini_that_does_not_exist(low, line):
    assert line in summary_lines(plain([[low, 0.0]]))


def test_summary_of_other_scores_uses_no_copy_threshold():
    assert not any("above" in line for line in summary_lines(plain([[0.2, 0.9]], "gate")))


def test_many_always_on_heads_are_counted_not_listed():
    runs = np.ones((3, 4, 5), dtype=np.float32)
    runs[0, 0, 0] = 0
    last = summary_lines(HeadScores(runs.astype(float).mean(axis=0), "copy", runs=runs))[-1]
    assert last.startswith("always on (active in every successful run): 19 heads: L0H1, L0H2,")
    assert last.endswith("and 11 more")


def test_nothing_scored_is_refused():
    with pytest.raises(HeadwiseError, match=r"^no head has a copy score"):
        summary_lines(plain([[NAN]]))


def test_shares_sum_to_one_and_split_at_the_thresholds():
    found = shares(plain([[0.0, 0.05, 0.1], [0.5, 1.2, NAN]]))
    assert [(s.label, s.heads) for s in found] == [("0", 1), ("(0, 0.1)", 1), ("[0.1, 0.5)", 1), ("≥ 0.5", 2)]
    assert sum(s.share for s in found) == pytest.approx(1)


# --- the ablation sweep


def sweep(**changes):
    rows = [
        {"metric": "recall", "kind": "none", "k": 0, "mean": 0.975, "low": 0.95, "high": 1.0},
        {
            "metric": "recall",
            "kind": "top",
            "k": 2,
            "mean": 0.1,
            "low": 0.05,
            "high": 0.2,
            "p_paired": 0.0004,
            "p_rank": 0.047619,
        },
        {"metric": "recall", "kind": "random", "k": 2, "mean": 0.9, "draws": [0.8, 1.0], "sd_draws": 0.1414},
        {"metric": "recall", "kind": "bottom", "k": 2, "mean": 0.96},
        {"metric": "recall", "kind": "top", "k": 1, "mean": 0.5, "low": None, "high": None, "p_paired": 0.03, "p_rank": None},
        {"metric": "logprob", "kind": "none", "k": 0, "mean": -0.5},
        {"metric": "logprob", "kind": "top", "k": 1, "mean": None},
        {"metric": "perplexity", "kind": "none", "k": 0, "mean": 12.3456},
        {"metric": "perplexity", "kind": "random", "k": 1, "mean": 12345.6, "draws": [12345.6], "sd_draws": None},
    ]
    return {"summary": rows, "mode": "mean", "scope": "answer", "model": "some/model", "items": 12} | changes


def test_ablation_table_shows_every_row_by_ascending_k():
    assert cells_of(ablation_table(sweep()))[:6] == [
        ["Recall", "0", "0.975", "0.950", "to", "1.000", "–", "–", "–", "–"],
        ["1", "0.500", "–", "–", "–", "0.030", "–"],
        ["2", "0.100", "0.050", "to", "0.200", "0.900", "±", "0.141", "0.960", "<0.001", "0.048"],
        ["Log-prob.", "0", "-0.500", "–", "–", "–", "–", "–"],
        ["Perplexity", "0", "12.346", "–", "–", "–", "–", "–"],
        ["1", "–", "–", "12,346", "–", "–", "–"],
    ]


def test_ablation_table_names_what_was_done():
    lines = rendered(ablation_table(sweep(perplexity={"scope": "all"})))
    assert lines[:2] == ["Ablating heads: mode mean, scope answer, 12 items", "some/model"]
    assert "K = 0: no ablation. 2 random draws per K." in lines
    assert "Perplexity, scope all: plain text, 1 draw." in lines
    assert not any("scope all" in line for line in rendered(ablation_table(sweep())))


def test_ablation_table_fits_into_a_terminal():
    result = sweep()
    for row in result["summary"]:
        row |= {"mean": -10.123, "low": -11.123, "high": -10.001, "p_paired": 0.00001, "p_rank": 0.5}
        row |= {"sd_draws": 0.12345} if row["kind"] == "random" else {}
    assert len(cells_of(ablation_table(result))) == len(cells_of(ablation_table(result), 200)), "a line was wrapped"


def test_a_broken_result_is_refused():
    with pytest.raises(HeadwiseError, match=r"^this is no ablation result \((?!.*Error\()"):
        ablation_table({"summary": [{"metric": "recall"}]})


# --- published files


@pytest.mark.skipif(not PUBLISHED.exists(), reason="published head scores are not here")
def test_published_headkv_scores():
    (path,) = sorted(PUBLISHED.rglob("Mistral*.json.gz"))
    scores = load_heads(path)
    lines = summary_lines(scores)
    assert lines[0] == "copy scores of 1024 heads (32 layers × 32)"
    assert lines[1] == f"above 0.1: {int((scores.values > 0.1).sum())} heads (5.9%)"
    best = scores.ranking()[0]
    assert cells_of(head_table(scores, 1))[0][:3] == ["1", str(best), f"{scores.values[best]:.3f}"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("org/model", "org/model"),
        ("lab-6m", "lab-6m"),
        ("/home/me/checkpoints/run 3/", "run 3"),
        ("~/models/x", "x"),
        ("C:\\models\\x", "x"),
        ("\\\\server\\models\\x", "x"),
        ("/cache/hub/models--org--name/snapshots/0123abcd", "org/name"),
        ("bad\x1b[2J\u202ename", "bad[2Jname"),
        ("/", ""),
    ],
)
def test_names_carry_no_absolute_path_and_nothing_invisible(given, shown):
    assert public_name(given) == shown


@pytest.mark.parametrize("shape", [(1, 1025), (1025, 1)])
def test_tables_larger_than_any_model_are_refused(shape):
    with pytest.raises(
        HeadwiseError,
        match=r"^a table of \d+ layers × \d+ heads is larger than that of any model; at most 1024 × 1024 are shown$",
    ):
        scored(HeadScores(np.ones(shape), "copy"))
    assert scored(HeadScores(np.ones((1, 1024)), "copy")).size == 1024
