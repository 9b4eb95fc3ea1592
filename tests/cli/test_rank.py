"""`headwise detect query` and `headwise rank`, on files as users bring them."""

import json
import sys

import pytest

from headwise.heads import HeadId, load_heads
from headwise.prompts.collections import read_run
from tests.cli.test_refusals import check_refused

TEXTS = [
    "the river was slow and wide",
    "we took a boat to see old town",
    "before snow came down from hills",
    "men were cutting wood near our road",
]
QUERIES = ["the river", "a boat", "snow came", "cutting wood"]


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    rows = [{"query": q, "passages": TEXTS, "gold": [i]} for i, q in enumerate(QUERIES)]
    (folder / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "p.jsonl").write_text("\n".join(json.dumps({"id": f"p{i}", "text": t}) for i, t in enumerate(TEXTS)))
    (folder / "q.jsonl").write_text("\n".join(json.dumps({"id": f"q{i}", "text": q}) for i, q in enumerate(QUERIES)))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(f"q{i}\tp{i}\t1" for i in range(4)))
    return folder


@pytest.fixture
def query_file(planted, headwise, files, tmp_path):
    path = tmp_path / "query.json"
    done = headwise("detect", "query", planted.model, "--data", files / "labelled.jsonl", "-o", path, "--json")
    assert done.code == 0, done.err
    return path


def arguments(files, *more):
    return ["--queries", files / "q.jsonl", "--passages", files / "p.jsonl", "--evaluate", files / "qrels.tsv", *more]


def test_query_heads_are_found_and_rank(planted, headwise, files, query_file, tmp_path):
    scores = load_heads(query_file)
    assert scores.score == "query"
    assert scores.ranking()[0] == HeadId(1, 2)
    done = headwise("rank", planted.model, *arguments(files), "--heads", query_file, "--top", 1, "-o", "r.trec", "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert {row["measure"]: row["value"] for row in result["measures"]}["nDCG@10"] == 1.0
    run = read_run(tmp_path / "r.trec")
    assert [max(run[f"q{i}"], key=run[f"q{i}"].get) for i in range(4)] == ["p0", "p1", "p2", "p3"]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["mass", "ndcg", "mrr", "contrastive"])
def test_every_rule_runs_and_is_named(planted, headwise, files, rule, tmp_path):
    done = headwise(
        "detect", "query", planted.model, "--rule", rule, "--data", files / "labelled.jsonl", "-o", f"{rule}.json"
    )
    assert done.code == 0, done.err
    assert load_heads(tmp_path / f"{rule}.json").provenance["rule"] == rule
    assert f"rule {rule}" in done.out
    assert "L1H2" in done.out


@pytest.mark.slow
def test_candidates_may_be_judged_or_a_run_or_bm25(planted, headwise, files, tmp_path):
    for which, pairs in (("judged", 4), ("bm25:2", 8)):
        done = headwise("rank", planted.model, *arguments(files, "--candidates", which, "-o", "a.trec", "--overwrite"), "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["pairs"] == pairs
    assert "first_stage" in json.loads(done.out)
    (tmp_path / "given" / "first.trec").write_text("q0 Q0 p1 1 0.2 x\nq0 Q0 p0 2 0.9 x\n")
    done = headwise("rank", planted.model, *arguments(files, "--candidates", files / "first.trec", "-o", "b.trec"))
    assert done.code == 0, done.err
    assert set(read_run(tmp_path / "b.trec")) == {"q0"}
    assert "First stage" in done.out


@pytest.mark.slow
def test_beir_official_windows_and_cut_passages(planted, headwise, files, tmp_path):
    folder = tmp_path / "given" / "beir"
    (folder / "qrels").mkdir(parents=True)
    for name, target in (("p.jsonl", "corpus.jsonl"), ("q.jsonl", "queries.jsonl"), ("qrels.tsv", "qrels/test.tsv")):
        (folder / target).write_text((files / name).read_text())
    done = headwise("rank", planted.model, "--beir", folder, "--official", "--max-words", 4, "-o", "c.trec")
    assert done.code == 0, done.err
    assert "4 different ones cut" in done.out
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps({"id": f"p{i}", "text": " ".join(TEXTS)}) for i in range(60)))
    done = headwise("rank", planted.model, "--beir", folder, "-o", "d.trec", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["pairs"] == 240
    check_refused(
        headwise("rank", planted.model, "--beir", folder, "--overflow", "refuse", "-o", "e.trec"),
        "60 passages have",
        "tournament",
    )
    assert not (tmp_path / "e.trec").exists()


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ([], ["nothing to rank"]),
        (["--queries", "Q"], ["nothing to rank"]),
        (["--queries", "Q", "--passages", "P", "--beir", "."], ["not both"]),
        (["--beir", "."], ["not in BEIR layout", "corpus.jsonl"]),
        (["--queries", "Q", "--passages", "none.jsonl"], ["cannot read passages"]),
        (["--queries", "Q", "--passages", "P", "--candidates", "judged"], ["needs judgements"]),
        (["--queries", "Q", "--passages", "P", "--candidates", "some"], ["unknown --candidates 'some'"]),
        (["--queries", "Q", "--passages", "P", "--candidates", "bm25:0"], ["at least 1"]),
        (["--queries", "Q", "--passages", "P", "--max-words", "0"], ["--max-words must be at least 1"]),
        (["--queries", "Q", "--passages", "P", "--span", "all"], ["unknown span 'all'"]),
        (["--queries", "Q", "--passages", "P", "--wording", "fancy"], ["unknown passage layout 'fancy'"]),
        (["--queries", "Q", "--passages", "P", "--chat"], ["no chat template"]),
        (["--queries", "Q", "--passages", "P", "--heads", "none.json"], ["no such head file"]),
    ],
)
def test_wrong_input_is_refused_in_one_line(planted, headwise, files, given, parts, tmp_path):
    names = {"Q": files / "q.jsonl", "P": files / "p.jsonl"}
    check_refused(headwise("rank", planted.model, *[names.get(a, a) for a in given]), *parts)
    assert not (tmp_path / "headwise-out").exists()


def test_a_result_is_not_overwritten_and_a_missing_extra_is_named(planted, headwise, files, monkeypatch, tmp_path):
    (tmp_path / "a.trec").write_text("old")
    check_refused(headwise("rank", planted.model, *arguments(files, "-o", "a.trec")), "a.trec exists")
    assert (tmp_path / "a.trec").read_text() == "old"
    monkeypatch.setitem(sys.modules, "bm25s", None)
    check_refused(headwise("rank", planted.model, *arguments(files, "--candidates", "bm25:2")), "pip install 'headwise[rank]'")


def test_wrong_query_data_is_refused(planted, headwise, files):
    (files / "bad.jsonl").write_text('{"query": "a", "passages": ["x", "y"], "gold": []}')
    for data, part in (("bad.jsonl", "none of 1 queries has both"), ("p.jsonl", "expected")):
        check_refused(headwise("detect", "query", planted.model, "--data", files / data), part)
    check_refused(headwise("detect", "query", planted.model, "--rule", "set"), "unknown rule 'set'")


def test_the_best_passages_of_the_first_queries_are_shown(planted, headwise, files, query_file, tmp_path):
    asked = ["rank", planted.model, "--heads", query_file, "--top", 1, *arguments(files)[:4], "--overwrite", "-o", "r.trec"]
    shown = headwise(*asked).out
    assert "the first 3 of 4 queries" in shown
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows if row[0]] == QUERIES[:3]
    run = read_run(tmp_path / "r.trec")
    best = [sorted(run[query], key=run[query].get, reverse=True)[:3] for query in ("q0", "q1", "q2")]
    assert [row[2] for row in rows] == [key for keys in best for key in keys]
    assert [row[1] for row in rows] == ["1", "2", "3"] * 3
    assert all(TEXTS[int(row[2][1:])].startswith(row[4][:15]) for row in rows)
    assert set(json.loads(headwise(*asked, "--json").out)) == {"run", "page", "queries", "pairs", "cut", "empty"}


@pytest.mark.slow
def test_a_collection_of_many_queries_is_not_shown(planted, headwise, files):
    many = "\n".join(json.dumps({"id": f"q{i}", "text": QUERIES[i % 4]}) for i in range(51))
    (files / "q.jsonl").write_text(many)
    done = headwise("rank", planted.model, *arguments(files)[:4], "-o", "r.trec")
    assert done.code == 0, done.err
    assert "│" not in done.out
    assert "204 passages ranked for 51 queries" in done.out


@pytest.mark.parametrize("name", ["p.jsonl", "q.jsonl"])
def test_an_empty_text_of_the_users_files_is_refused(planted, headwise, files, name, tmp_path):
    path = files / name
    path.write_text(path.read_text() + '\n{"id": "blank", "text": " "}\n')
    done = headwise("rank", planted.model, *arguments(files), "-o", "r.trec")
    check_refused(done, f"{name}, line 5: a ", "passage is empty" if name == "p.jsonl" else "query is empty")
    assert not (tmp_path / "r.trec").exists()


def test_empty_passages_come_last_and_identical_ids_are_ignored_as_beir_does(planted, headwise, tmp_path):
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": "d1", "title": "", "text": ""}, {"_id": "q1", "text": "the secret of alder."}, {"_id": "d3", "text": "the river of stone."}]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "what is the secret of alder?"}))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td3\t1\n")
    done = headwise("rank", planted.model, "--beir", folder, "-o", "r.trec", "--json")
    assert done.code == 0, done.err
    assert [line.split()[2] for line in (tmp_path / "r.trec").read_text().splitlines()] == ["d3", "d1"]
    assert json.loads(done.out)["empty"] == 1


def test_a_missing_head_file_is_answered_with_those_that_lie_near(planted, headwise, heads, tmp_path):
    for name in ("q.jsonl", "p.jsonl"):
        (tmp_path / name).write_text('{"id": "a", "text": "the secret of alder"}\n')
    asked = ["rank", planted.model, "--queries", "q.jsonl", "--passages", "p.jsonl", "--heads"]
    check_refused(headwise(*asked, heads.with_name("plantd.json")), "no such head file", "did you mean", heads.name)
    check_refused(headwise(*asked, "nowhere/x.tsv"), "no such head file: nowhere/x.tsv; make one with headwise detect")
