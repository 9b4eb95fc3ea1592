"""The explorer: the numbers behind it, and that it can show every file of the library and of others."""

import base64
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from headwise.heads import HeadScores, HeadwiseError, load_heads
from headwise.report import explorer_compare, explorer_data
from headwise.report.explorer import explorer
from headwise.report.explorer_data import Entry, labelled
from headwise.report.numbers import interval
from headwise.stats.agreement import pearson, top_overlap

PUBLISHED = Path(__file__).parents[1] / "data" / "published-head-scores"


def made_up(seed=0, layers=4, heads=6, runs=12, score="copy", model="tiny", grid=True, **provenance):
    """Scores with two unscored heads."""
    rng = np.random.default_rng(seed)
    table = rng.beta(0.3, 1.5, (layers, heads))
    values = np.clip(table * rng.uniform(0.5, 1.2, (runs, layers, heads)), 0, 1).astype(np.float32)
    values[:, 1, :2] = np.nan
    info = [{"length": 100 * (1 + i % 3), "depth": (i % 4) / 3, "needle": i} if grid else {"query": i} for i in range(runs)]
    cells = [i | {"recall": 0.5, "exact": False, "success": True} for i in info]
    known = {"model": model, "kv_heads": heads // 2, "runs": runs, "solved": runs} | ({"cells": cells} if grid else {})
    return HeadScores(values.mean(axis=0).astype(float), score, 1, values, tuple(info), known | provenance)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)[1])


def sweep():
    rows = [{"metric": "recall", "kind": "none", "k": 0, "mean": 0.9}]
    for k in (1, 2, 40):
        rows += [
            {"metric": "recall", "kind": "top", "k": k, "mean": 0.5 / k, "low": 0.1 / k, "high": 0.8 / k, "p_paired": 0.01},
            {"metric": "recall", "kind": "random", "k": k, "mean": 0.85, "draws": [0.8, 0.9]},
            {"metric": "recall", "kind": "bottom", "k": k, "mean": 0.9, "low": 0.8, "high": 1.0},
        ]
    return {"mode": "zero", "scope": "answer", "model": "<i>m</i>", "items": 9, "summary": rows}


def test_intervals_are_those_of_the_table():
    runs = made_up(runs=20).runs
    low, high = explorer_data.intervals(runs)
    for layer, head in np.ndindex(*runs.shape[1:]):
        wanted = interval(runs[:, layer, head])
        if wanted is None:
            assert np.isnan(low[layer, head])
        else:
            np.testing.assert_allclose((low[layer, head], high[layer, head]), wanted, atol=1e-6)
    assert np.isnan(explorer_data.intervals(runs[:1])[0]).all()


def test_packed_runs_come_back():
    scores = made_up(runs=33)
    packed = explorer_data.packed_runs(scores)
    levels = np.frombuffer(gzip.decompress(base64.b64decode(packed["packed"])), np.uint8).reshape(-1, 33)
    values = packed["low"] + levels / packed["levels"] * (packed["high"] - packed["low"])
    runs = scores.runs.reshape(33, -1).T
    assert ((levels == 255) == np.isnan(runs)).all()
    known = ~np.isnan(runs)
    assert np.abs(values - runs)[known].max() <= (packed["high"] - packed["low"]) / 508 + 1e-6
    same = HeadScores(np.full((1, 2), 0.5), "copy", runs=np.full((3, 1, 2), 0.5, dtype=np.float32))
    assert explorer_data.packed_runs(same)["low"] == 0.5


def test_the_table_of_heads_ranks_what_is_scored():
    scores = made_up()
    table = explorer_data.head_table(scores)
    assert set(table) == set(explorer_data.head_columns(scores))
    assert table["name"][7] == "L1H1"
    assert table["score"][6:8] == table["rank"][6:8] == [None, None]
    order = [f"L{h.layer}H{h.head}" for h in scores.ranking()]
    assert [table["name"][table["rank"].index(i + 1)] for i in range(len(order))] == order


def test_groups_and_axes_are_known_only_if_the_file_says_so():
    assert explorer_data.group_size(made_up()) == 2
    assert explorer_data.group_size(made_up(kv_heads=6)) == 1
    assert explorer_data.group_size(made_up(kv_heads=None)) == 1
    assert explorer_data.group_size(made_up(columns="KV heads")) == 1
    assert explorer_data.run_axes(made_up(grid=False)) is None
    assert explorer_data.run_axes(made_up(runs=3)) == {"length": [100, 200, 300], "depth": [0, 33.3, 66.7]}


def test_labels_tell_files_apart():
    scores = made_up()
    other = HeadScores(scores.values, "gate")
    files = [
        (Path("a/heads.tsv"), other),
        (Path("b/heads.tsv"), other),
        (Path("c/x.json.gz"), scores),
        (Path("c/y.json"), scores),
    ]
    assert [entry.label for entry in labelled(files)] == ["a", "b", "x", "y"]
    assert [entry.label for entry in labelled(files[1:3])] == ["heads", "tiny, copy score"]
    assert [entry.label for entry in labelled([files[0]] * 2)] == ["heads (1)", "heads (2)"]
    assert labelled(files)[0].link("L0H1") == "#L0H1"
    assert labelled(files)[2].link("L0H1") == "#3-L0H1"


def test_a_comparison_says_what_noise_allows():
    a, b = made_up(0, runs=40), made_up(0, runs=40)
    c = made_up(3)
    entries = [Entry("a", a, 1), Entry("b", b, 2), Entry("c", c, 3)]
    found = explorer_compare.comparison(entries)
    pair = next(p for p in found["pairs"] if (p["a"], p["b"]) == (1, 3))
    known = ~np.isnan(a.values)
    assert pair["pearson"] == pytest.approx(pearson(a.values, c.values))
    assert pair["spearman"] == pytest.approx(spearmanr(a.values[known], c.values[known]).statistic)
    assert pair["overlap"] == [top_overlap(a.values, c.values, k) for k in found["ks"]]
    same = found["pairs"][0]
    assert same["pearson"] == pytest.approx(1)
    assert 0.9 < same["bound"] <= 1
    assert same["bound"] == pytest.approx(
        np.sqrt(explorer_compare.reliability(entries[0]) * explorer_compare.reliability(entries[1]))
    )
    assert found["retest"][1] is not None
    without = Entry("d", HeadScores(a.values, "gate"), 4)
    assert explorer_compare.comparison([entries[0], without])["pairs"][0]["bound"] is None


def test_ties_share_their_rank():
    values = np.array([[0.0, 0.0, 2.0, np.nan, 1.0]])
    np.testing.assert_array_equal(explorer_compare._ranks(values), [[1.5, 1.5, 4, np.nan, 3]])


def test_only_tables_of_one_shape_are_compared():
    entries = [Entry(str(i), made_up(layers=n), i) for i, n in enumerate((4, 5, 4, 6, 5), 1)]
    assert [[e.number for e in group] for group in explorer_compare.comparable(entries)] == [[1, 3], [2, 5]]


@pytest.mark.parametrize("score", ["copy", "query", "semantic", "gate", "evidence", "proxy"])
def test_files_of_every_detector_are_shown(score, tmp_path):
    scores = made_up(score=score, grid=score in ("copy", "semantic"))
    if score == "gate":
        scores = HeadScores(scores.values, "gate", provenance={"model": "m"})
    page = explorer([(tmp_path / "x.json", "heads", scores)])
    data = data_of(page)
    assert data["files"][0]["score"] == score
    assert len(data["tables"]["heads1"]["score"]) == 24
    assert (data["files"][0]["runs"] is None) == (score == "gate")
    assert (data["files"][0]["axes"] is not None) == (score in ("copy", "semantic"))
    assert ("Needle grid" in page) == (score in ("copy", "semantic"))
    assert ('{"limit":0.1}' in page) == (score == "copy")  # published thresholds are those of the copy score


def test_published_files_make_a_gallery():
    files = sorted([*PUBLISHED.rglob("*.tsv"), *PUBLISHED.rglob("*.json.gz")])
    page = explorer([(file, "heads", load_heads(file)) for file in files])
    assert len(files) == 2
    assert page.count('class="pick"') == 2
    assert "KV head" in page
    assert 'id="compare-1"' not in page  # 32 x 8 beside 32 x 32


def test_all_kinds_of_results_share_a_page(tmp_path):
    heads = [(tmp_path / f"{i}.json", "heads", made_up(i)) for i in range(3)]
    cells = [{"length": n, "depth": d, "recall": 0.5} for n in (1, 2) for d in (0, 1)]
    others = [(tmp_path / "a.json", "ablation", sweep()), (tmp_path / "n.json", "needle", {"cells": cells})]
    page = explorer([*heads, *others])
    assert "&lt;i&gt;m&lt;/i&gt;" in page
    assert "<i>m</i>:" not in page
    assert page.count("</section>") == page.count("<section")
    assert "Ablation: a.json" in page
    assert "Needle grid: n.json" in page
    assert "Test-retest bound" in page
    assert explorer([*heads, *others]) == page
    only = explorer(others)
    assert data_of(only)["files"] == []


def test_what_cannot_be_shown_is_one_line():
    nothing = HeadScores(np.full((2, 2), np.nan), "copy")
    with pytest.raises(HeadwiseError, match=r"x.json: no head has a copy score, so there is nothing to show"):
        explorer([(Path("x.json"), "heads", nothing)])
    with pytest.raises(HeadwiseError, match="nothing to show: give at least one result file"):
        explorer([])
    with pytest.raises(HeadwiseError, match=r"a.json: this is no ablation result"):
        explorer([(Path("a.json"), "ablation", {"summary": [{"k": "x"}]})])
    with pytest.raises(HeadwiseError, match=r"n.json: there are no needle runs"):
        explorer([(Path("n.json"), "needle", {"cells": []})])


def test_equal_scores_are_shown_too(tmp_path):
    data = data_of(explorer([(tmp_path / "x.json", "heads", HeadScores(np.zeros((2, 3)), "copy"))]))
    assert data["tables"]["heads1"]["rank"] == [1, 2, 3, 4, 5, 6]


def test_a_page_about_a_large_model_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    runs = rng.random((600, 32, 32), dtype=np.float32)  # noise: what compresses worst
    info = tuple({"length": 1000 * (1 + i % 20), "depth": round((i % 10) / 9, 4)} for i in range(600))
    cells = [one | {"recall": float(rng.random())} for one in info]
    provenance = {"model": "large", "kv_heads": 8, "cells": cells}
    scores = HeadScores(runs.mean(axis=0).astype(float), "copy", runs=runs, run_info=info, provenance=provenance)
    pieces = [f" w{i}" for i in range(2000)]
    looked = {f"L{i}H{j}": [[[5] * 8] * 20, [[100] * 8] * 20] for i in range(4) for j in range(8)}
    spans = {"needle": [10, 20], "answer": [12, 15], "question": [1900, 1950]}
    traces = [{"pieces": pieces, "prompt": 1980, "spans": spans, "heads": looked, "info": {"about": "x"}}] * 3
    page = explorer([(tmp_path / "x.json", "heads", scores)], traces)
    assert len(page.encode()) < 3_000_000


def test_pages_carry_no_absolute_path():
    from headwise.report import compression_page, ranking_page
    from tests.browser.conftest import cache_result, ranking

    secret = "/home/secret/models/mine"
    scores = made_up(1, layers=4, heads=4, model=secret, haystack="/home/secret/books", tokenizer={"file": "/home/secret/t.json"})
    (cached, example) = cache_result()
    pages = [
        explorer(
            [
                (Path("/home/secret/h.json"), "heads", scores),
                (Path("/home/secret/a.json"), "ablation", sweep() | {"model": secret}),
            ]
        ),
        ranking_page.page(ranking() | {"model": secret}),
        compression_page.page(cached | {"model": secret}, example),
    ]
    for page in pages:
        assert "/home/secret" not in page
        assert "mine" in page
