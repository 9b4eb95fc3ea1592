"""`headwise detect in-context|parametric|task|retrieval`."""

import json
from pathlib import Path

import pytest

from headwise.heads import load_heads
from headwise.testing.planted import planted_task

KNOWLEDGE = Path(__file__).parents[1] / "data" / "knowledge"


@pytest.fixture
def questions(tmp_path):
    """The planted model's needles as sentences to complete, each in a passage; the answers are swapped by the command."""
    rows = []
    for needle in planted_task().needles:
        passage = f"the river was slow. {needle['needle'].rstrip('.')}. men were cutting wood."
        rows.append({"question": needle["answer_prefix"], "answers": [needle["answer"]], "passage": passage, "kind": "secret"})
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("in-context", []),
        pytest.param("parametric", [], marks=pytest.mark.slow),
        pytest.param("retrieval", ["--rows", "last"], marks=pytest.mark.slow),
        pytest.param("task", [], marks=pytest.mark.slow),
    ],
)
def test_a_head_file_of_each_map(headwise, planted, questions, tmp_path, name, more):
    common = ["--data", questions, "--wording", "cloze", "--followed", "any", "--min-records", "4", "--json"]
    done = headwise("detect", name, planted.model, *common, *more, "-o", f"{name}.json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["head_file"] == f"{name}.json"
    scores = load_heads(tmp_path / f"{name}.json")
    assert (scores.score, scores.shape, len(scores.runs)) == (name, (2, 4), 8)
    assert "standard_error" in scores.tables
    assert not (tmp_path / f"{name}.json.run").exists()
    if name in ("in-context", "retrieval"):
        assert str(scores.ranking()[0]) == "L1H2"


@pytest.mark.slow
def test_wrong_input_is_refused_in_one_line(headwise, planted, questions, tmp_path):
    for arguments, message in (
        ([], "no questions were given; give --data FILE"),
        (["--data", "none.jsonl"], "cannot read questions from none.jsonl"),
        (["--data", questions, "--rule", "lrp"], "unknown rule 'lrp'; use gradient, gim, cp_lrp or attnlrp"),
        (["--data", questions, "--records", "9"], "9 records at most cannot be 50 at least"),
        (["--data", questions, "--layout", "wiki"], "unknown layout 'wiki'"),
        (["--data", questions, "--wording", "cloze"], "0 of 8 records can be used, fewer than 50"),
        (["--data", KNOWLEDGE / "relations.jsonl"], "relations.jsonl holds 0 questions whose answer can be swapped in a passage"),
    ):
        done = headwise("detect", "in-context", planted.model, *arguments, "-o", "p.json")
        assert done.code == 2, done.out
        assert message in done.err, (arguments, done.err)
        assert done.err.count("headwise: error:") == 1
        assert "Traceback" not in done.err
        assert not list(tmp_path.glob("p.*"))


def test_help_says_which_rules_patents_may_cover(headwise):
    done = headwise("detect", "retrieval", "--help")
    assert "patents" in done.out
    assert "12,061,966" in done.out
