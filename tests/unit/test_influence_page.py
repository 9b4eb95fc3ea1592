"""What a report knows of a scored corpus, against all rows at once; and the page made of it."""

import json
import re

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("pyarrow")

from headwise.corpus import summary as module
from headwise.corpus.choose import choose
from headwise.corpus.options import ChoiceOptions
from headwise.corpus.summary import summarise
from headwise.corpus.tables import ScoreFiles
from headwise.report.influence import influence_page
from headwise.report.influence_numbers import densities, excerpt, points
from headwise.report.influence_table import choice_table
from tests.unit.test_choose import random_rows, selected, write_scores


def more(rows, seed):
    """Rows with all columns, some of them flagged or without a score."""
    rng, count = np.random.default_rng(seed), len(rows["row"])
    rows["score"] = (rows["score"] + 0.8 * np.log(rows["n_tokens"])).astype(np.float32)
    rows["flagged"] = rows["n_tokens"] < 200
    rows["reason"] = [("too short" if flagged else None) for flagged in rows["flagged"]]
    rows["score"] = rows["score"].tolist()
    for i in range(5):
        rows["score"][i], rows["reason"][i], rows["flagged"][i] = None, "no text", True
    rows |= {"loss_ref": rows["loss_base"] * 1.1, "n_scored": rows["n_tokens"] - 1, "truncated": rng.random(count) < 0.1}
    return rows


@pytest.fixture
def corpus(tmp_path):
    parts = {"a": more(random_rows(1500, 1), 1), "b": more(random_rows(900, 2), 2)}
    for name, rows in parts.items():
        write_scores(tmp_path, name, rows)
    columns = {key: np.concatenate([np.asarray(rows[key], dtype=object) for rows in parts.values()]) for key in parts["a"]}
    columns["file"] = np.repeat(["a.parquet", "b.parquet"], [1500, 900])
    return str(tmp_path), columns


def test_the_numbers_are_those_of_all_rows_at_once(corpus):
    out, rows = corpus
    options = ChoiceOptions(share=0.1)
    data = summarise(ScoreFiles(out), options, named=3)
    assert choose(out, options)["thresholds"] == data["thresholds"]
    taken = np.concatenate([selected(module_path(out), name)[1] for name in ("a", "b")])
    missing = np.array([score is None for score in rows["score"]])
    flagged = rows["flagged"].astype(bool)
    assert data["reasons"] == {"flagged": {"too short": int((flagged & ~missing).sum())}, "without a score": {"no text": 10}}
    assert data["truncated"] == rows["truncated"].sum()
    choose(out, ChoiceOptions(share=0.1, rank="perplexity"), into=f"{out}/other")
    other = np.concatenate([selected(module_path(out, "other"), name)[1] for name in ("a", "b")])
    for domain in ("web", "math"):
        mine = (rows["domain"] == domain) & ~flagged
        overlap = data["overlap"]["perplexity"][domain]
        assert overlap["both"] == (mine & taken & other).sum()
        assert overlap["share"] == overlap["both"] / (mine & taken).sum()
        sample = data["samples"][domain]
        assert len(sample["score"]) == mine.sum()  # fewer than `SAMPLE`: all of them
        assert sum(sample["chosen"]) == (mine & taken).sum()
        score, tokens = rows["score"][mine].astype(np.float32), rows["n_tokens"][mine].astype(int)
        found = data["correlations"][domain]
        assert found["before"] == pytest.approx(stats.spearmanr(score, tokens).statistic)
        assert found["before"] > 0.3
        assert abs(found["after"]) < 0.2 * found["before"]
        order = np.argsort(-score, kind="stable")
        named = data["named"][domain]
        assert [row["score"] for row in named["most"]] == score[order[:3]].tolist()
        assert [row["score"] for row in named["least"]] == score[order[::-1][:3]].tolist()
        assert [(row["file"], row["row"]) for row in named["most"]] == [
            (rows["file"][mine][i], rows["row"][mine][i]) for i in order[:3]
        ]
        line = next(row["threshold"] for row in data["thresholds"]["domains"] if row["domain"] == domain)
        assert named["boundary"][0]["score"] == line


def module_path(out, name="selected"):
    from pathlib import Path

    return Path(out) / name


def test_a_sample_is_bounded_random_and_the_same_each_time(corpus, monkeypatch):
    out, _ = corpus
    monkeypatch.setattr(module, "SAMPLE", 200)
    first, second = (summarise(ScoreFiles(out), ChoiceOptions(), named=0) for _ in range(2))
    assert first["named"] == {}
    for domain, sample in first["samples"].items():
        assert len(sample["score"]) == 200
        assert sample["row"].tolist() == second["samples"][domain]["row"].tolist()
        assert abs(np.mean(sample["chosen"]) - 0.2) < 0.1
        assert {"a.parquet", "b.parquet"} == set(sample["file"])


def test_the_page_holds_the_numbers_and_escapes_texts(corpus, tmp_path):
    out, _ = corpus
    data = summarise(ScoreFiles(out), ChoiceOptions(strata=4), named=1)
    for kinds in data["named"].values():
        for rows in kinds.values():
            for row in rows:
                row["text"] = "<script>alert(1)</script> & text"
    path = influence_page(data, tmp_path / "page.html")
    page = path.read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; text" in page
    for part in ("4 strata", "too short", "no text", "Within strata of length", "lowest loss", "highest scores"):
        assert part in page, part
    assert f"{data['thresholds']['all']['ranked']:,}" in page
    held = re.findall(r'<script type="application/json">(.*?)</script>', page)
    assert [json.loads(text)["name"] for text in held] == ["influence-scores", "influence-length"]
    assert "http://" not in page.split("</style>")[1].split("<script>")[0]  # nothing is fetched


def test_many_domains_are_cut_to_the_largest_in_charts_only(tmp_path):
    rows = more(random_rows(3000, 3, [f"domain{i}" for i in range(12)]), 3)
    write_scores(tmp_path, "a", rows)
    page = influence_page(summarise(ScoreFiles(str(tmp_path)), ChoiceOptions(), named=1), tmp_path / "p.html").read_text()
    assert page.count("The 7 largest domains are shown.") == 3
    assert all(page.count(f"<td>domain{i}</td>") >= 4 for i in range(12))


def test_pieces_of_the_page():
    sample = {"score": np.linspace(0, 1, 400), "n_tokens": np.arange(400), "loss_base": np.ones(400), "chosen": np.ones(400)}
    columns = densities({"x": sample, "": {"score": []}})
    assert set(columns["domain"]) == {"x"}
    assert sum(columns["share"]) == pytest.approx(1, abs=1e-4)
    assert densities({}) == {"domain": [], "score": [], "share": []}
    assert len(points({"x": sample, "y": sample}, most=100)["score"]) == 100
    assert excerpt("a" * 700, 100) == "a" * 50 + " […] " + "a" * 50
    assert excerpt("short") == "short"
    assert "could not be read" in excerpt(None)


def test_the_table_for_the_console(corpus):
    out, _ = corpus
    table = choice_table(choose(out)["thresholds"])
    assert table.row_count == 3
    assert list(table.columns[0].cells) == ["math", "web", "all"]
