"""Collections in plain and BEIR layout, judgements, runs, and the measures of a run."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise.heads import HeadwiseError, PromptError
from headwise.prompts.collections import beir_files, read_passages, read_qrels, read_queries, read_run, trec_lines
from headwise.prompts.passages import Passage
from headwise.stats.ranking import bm25_candidates, per_query, summary
from tests.reference import query as slow


def lines(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_a_beir_folder_is_read_plain_or_packed(tmp_path):
    for end in ("", ".gz"):
        folder = tmp_path / f"beir{end}"
        lines(folder / f"corpus.jsonl{end}", {"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "text": "two"})
        lines(folder / f"queries.jsonl{end}", {"_id": 7, "text": "which?"})
        lines(folder / f"qrels/test.tsv{end}", "query-id\tcorpus-id\tscore", "7\td2\t2", "7\td1\t0")
        corpus, queries, qrels = beir_files(folder)
        assert read_passages(corpus) == {"d1": Passage("one", "T"), "d2": Passage("two")}
        assert read_queries(queries) == {"7": "which?"}
        assert read_qrels(qrels) == {"7": {"d2": 2, "d1": 0}}


def test_plain_files_may_leave_ids_out(tmp_path):
    assert read_passages(lines(tmp_path / "p", '"one"', {"text": "two"})) == {"0": Passage("one"), "1": Passage("two")}
    assert read_queries(lines(tmp_path / "q", {"id": "a", "query": "x?"}, '"y?"')) == {"a": "x?", "1": "y?"}
    assert read_qrels(lines(tmp_path / "r", "1 0 d 1")) == {"1": {"d": 1}}


@pytest.mark.parametrize(
    ("reader", "row", "message"),
    [
        (read_passages, {"title": "T"}, "a passage is a text"),
        (read_queries, {"text": " "}, "a query is a text"),
        (read_queries, {"_id": "a b", "text": "x"}, "white space"),
        (read_qrels, "q d x\nq d y", "expected query, passage and grade"),
        (read_qrels, "", "holds no judgements"),
        (read_run, "q Q0 d 1", "expected query, Q0"),
        (read_run, "q Q0 d 1 high t", "expected query, Q0"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, reader, row, message):
    with pytest.raises(PromptError, match=message):
        reader(lines(tmp_path / "f", row))
    with pytest.raises(PromptError, match="cannot read"):
        reader(tmp_path / "none")


def test_ids_that_occur_twice_and_incomplete_folders_are_refused(tmp_path):
    with pytest.raises(PromptError, match="'a' occurs twice"):
        read_passages(lines(tmp_path / "p", {"id": "a", "text": "x"}, {"id": "a", "text": "y"}))
    lines(tmp_path / "b" / "corpus.jsonl", '"x"')
    with pytest.raises(PromptError, match=r"queries.jsonl \(or queries.jsonl.gz\) is missing"):
        beir_files(tmp_path / "b")
    with pytest.raises(PromptError, match="no such folder"):
        beir_files(tmp_path / "c")


def test_a_run_is_written_and_read_back(tmp_path):
    run = {"q1": {"a": 0.5, "b": 0.75, "c": 0.5}, "q2": {"a": -1.0}}
    rows = list(trec_lines(run, "tag"))
    assert rows[:3] == ["q1 Q0 b 1 0.75 tag", "q1 Q0 a 2 0.5 tag", "q1 Q0 c 3 0.5 tag"]
    assert read_run(lines(tmp_path / "r", *rows)) == run


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=15))
def test_measures_are_those_of_a_slow_loop(rows):
    gold = [flag for _, flag in rows]
    if not any(gold):
        gold[0] = True
    run = {str(i): float(value) for i, (value, _) in enumerate(rows)}
    found = per_query({"q": {str(i): int(flag) for i, flag in enumerate(gold)}}, {"q": run})
    values = [-place for place in _places(list(run.values()))]  # equal scores: the order of the run
    assert found["nDCG@10"]["q"] == pytest.approx(slow.ndcg(values, gold))
    assert found["RR"]["q"] == pytest.approx(slow.mrr(values, gold))


def _places(values):
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return [order.index(i) for i in range(len(values))]


def test_a_summary_has_intervals_over_judged_queries():
    qrels = {"a": {"x": 1}, "b": {"y": 1}, "c": {"x": 0}}
    run = {"a": {"x": 1.0, "y": 0.0}, "b": {"x": 1.0, "y": 0.0}, "c": {"x": 1.0}}
    rows = {row["measure"]: row for row in summary(qrels, run, ["RR", "R@1"])}
    assert rows["RR"]["value"] == 0.75
    assert rows["R@1"]["value"] == 0.5
    assert rows["RR"]["queries"] == 2
    assert rows["RR"]["low"] <= 0.75 <= rows["RR"]["high"]
    with pytest.raises(HeadwiseError, match="no query of the run"):
        summary({"z": {"x": 1}}, run)
    with pytest.raises(HeadwiseError, match="unknown retrieval measure"):
        summary(qrels, run, ["best@1"])


def test_bm25_puts_the_passage_with_the_words_first():
    passages = {"a": "the red door of the mill", "b": "a blue key under the stone", "c": "wind over the sea"}
    found = bm25_candidates({"q": "where is the blue key?", "r": "sea wind"}, passages, 2)
    assert next(iter(found["q"])) == "b"
    assert next(iter(found["r"])) == "c"
    assert all(len(scores) == 2 for scores in found.values())
    with pytest.raises(HeadwiseError, match="at least 1"):
        bm25_candidates({"q": "x"}, passages, 0)
