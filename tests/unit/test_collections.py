"""Collections in plain and BEIR layout, judgements, runs, and the measures of a run."""

import csv
import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise.heads import HeadwiseError, PromptError
from headwise.prompts.collections import beir_files, read_passages, read_qrels, read_queries, read_run, trec_lines
from headwise.prompts.passages import Passage
from headwise.stats.ranking import bm25_candidates, per_query, summary, without_identical
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
        (read_queries, {"text": " "}, "a query is empty"),
        (read_queries, {"text": ""}, "a query is empty"),
        (read_queries, {"id": "q"}, "a query is a text"),
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


def test_a_split_is_chosen_or_the_only_one_there_is(tmp_path):
    for name in ("corpus.jsonl", "queries.jsonl"):
        lines(tmp_path / name, {"_id": "a", "text": "x"})
    with pytest.raises(PromptError, match=r"qrels/test.tsv .* is missing"):
        beir_files(tmp_path)
    dev = lines(tmp_path / "qrels" / "dev.tsv", "a\ta\t1")
    assert beir_files(tmp_path)[2] == dev
    train = lines(tmp_path / "qrels" / "train.tsv.gz", "a\ta\t1")
    with pytest.raises(PromptError, match="qrels holds dev, train; choose one with --split"):
        beir_files(tmp_path)
    assert beir_files(tmp_path, "train")[2] == train
    test = lines(tmp_path / "qrels" / "test.tsv", "a\ta\t1")
    assert beir_files(tmp_path)[2] == test
    assert beir_files(tmp_path, "dev")[2] == dev
    with pytest.raises(PromptError, match="holds dev, test, train; no split 'val'"):
        beir_files(tmp_path, "val")


HEAD = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffq1 0 d2 1\nq2 0 d3 2\n",
        f"\ufeff{HEAD}q1\td2\t1\r\nq2\td3\t2\r\n",
        "q1\td2\t1.0\nq2\td3\t2.0",
        "q1\td2\t1\r\n\ufeffq2\td3\t2\r\n",  # two files that were joined
        f"{HEAD.upper()}q1 d2 1\nq2 d3 2",
    ],
)
def test_no_judgement_is_lost_to_a_byte_order_mark_or_a_header(tmp_path, text):
    (tmp_path / "qrels").write_text(text, "utf-8")
    assert read_qrels(tmp_path / "qrels") == {"q1": {"d2": 1}, "q2": {"d3": 2}}


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC, csv.QUOTE_MINIMAL])
def test_quoted_fields_are_read_as_they_were_before_quoting(tmp_path, quoting):
    """An id with a quote inside is quoted and its quote doubled even where quoting is minimal."""
    with (tmp_path / "qrels").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", quoting=quoting)
        rows.writerows([["query-id", "corpus-id", "score"], ["q1", "d2", 1], ["q2", 'the-"old"-mill', 2]])
    assert read_qrels(tmp_path / "qrels") == {"q1": {"d2": 1}, "q2": {'the-"old"-mill': 2}}
    with (tmp_path / "run").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=quoting).writerow(["q1", "Q0", 'd"1', 1, 3.5, "bm25"])
    assert read_run(tmp_path / "run") == {"q1": {'d"1': 3.5}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"q1\td2\t1', "line 1: a field begins with a double quote that is never closed"),
        (f'{HEAD}"q"1\td2\t1', "line 2: a field begins with a double quote that is never closed, or goes on behind it"),
        ("query\tdoc\tgrade\nq d 1", "line 1: expected query, passage and grade"),  # a header, but not BEIR's
        ("q1 0 d2 high\nq2 0 d3 1", "line 1: expected"),
        (f"q d 1\n{HEAD}q d 1", "line 2: expected"),
        ("q d 1\nq e 1.0", "line 2: the grade 1.0 is written otherwise than those above; write all with decimals or none"),
        ("q d 1.0\nq e 1", "line 2: the grade 1 is written otherwise"),
        ("q d 0.5", "line 1: the grade 0.5 is no whole number"),
        ("q d 9223372036854775808", "beyond 64 bits"),
        ("q d " + "9" * 5000, "beyond 64 bits"),
        ("q d ٣", "line 1: expected"),
    ],
)
def test_judgements_that_are_none_are_refused_by_their_line(tmp_path, text, message):
    (tmp_path / "qrels").write_text(text, "utf-8")
    with pytest.raises(PromptError, match=message) as error:
        read_qrels(tmp_path / "qrels")
    assert len(str(error.value)) < 300


def test_a_run_keeps_its_first_line_and_refuses_scores_that_are_none(tmp_path):
    (tmp_path / "run").write_text("\ufeffq1 Q0 d1 1 3.0 bm25\nq1 Q0 d2 2 2.0 bm25\n", "utf-8")
    assert read_run(tmp_path / "run") == {"q1": {"d1": 3.0, "d2": 2.0}}
    with pytest.raises(PromptError, match="line 1: the score nan is not a finite number"):
        read_run(lines(tmp_path / "run", "q1 Q0 d1 1 nan bm25"))


def test_a_line_separator_inside_a_text_is_no_line_end(tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_text('\ufeff{"_id": "d1", "text": "old.\u2028It"}\n{"_id": "d2", "text": "long\x85and wet"}\n', "utf-8")
    assert read_passages(path) == {"d1": Passage("old.\u2028It"), "d2": Passage("long\x85and wet")}


def test_empty_passages_are_kept_where_they_may_stand_and_a_title_alone_is_not_empty(tmp_path):
    path = lines(tmp_path / "p", {"_id": "a", "title": "", "text": ""}, {"_id": "b", "title": "The mill", "text": " "})
    assert [passage.is_empty for passage in read_passages(path, keep_empty=True).values()] == [True, False]


@pytest.mark.parametrize("row", ["", " \t", {"text": ""}, {"text": "\u00a0\n", "title": " "}])
def test_an_empty_passage_is_refused_with_file_and_line(tmp_path, row):
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"text": "the mill"}}\n\n{json.dumps(row)}\n')
    with pytest.raises(PromptError, match=r"p\.jsonl, line 3: a passage is empty"):
        read_passages(path)


def test_an_empty_query_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"text": "where?"}\n{"text": " "}\n')
    with pytest.raises(PromptError, match=r"q\.jsonl, line 2: a query is empty"):
        read_queries(path)


def test_a_passage_with_the_id_of_its_query_is_ignored_as_beir_does():
    qrels, run = {"q1": {"d2": 1}}, {"q1": {"q1": 9.0, "d2": 5.0, "d3": 1.0}}
    assert without_identical(run) == {"q1": {"d2": 5.0, "d3": 1.0}}
    assert per_query(qrels, without_identical(run), ["RR"])["RR"] == {"q1": 1.0}
    assert per_query(qrels, run, ["RR"])["RR"] == {"q1": 0.5}


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


def test_a_query_of_stop_words_alone_gets_the_first_passages():
    passages = {"a": "a red whale", "b": "bread", "c": "whale whale song"}
    found = bm25_candidates({"q": "the", "r": "whale"}, passages, 2)
    assert found["q"] == {"a": 0.0, "b": 0.0}
    assert set(found["r"]) == {"a", "c"}
