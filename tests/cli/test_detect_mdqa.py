"""`headwise detect mdqa`, on files as users bring them."""

import json

import pytest

from headwise.heads import load_heads
from headwise.methods.mudaf.options import RULES
from tests.cli.test_rank import files  # noqa: F401  # a fixture
from tests.cli.test_refusals import check_refused


@pytest.fixture
def detect(planted, headwise, files):  # noqa: F811
    def call(*arguments, data="labelled.jsonl"):
        return headwise("detect", "mdqa", planted.model, "--data", files / data, *arguments)

    return call


def test_the_planted_head_is_found(detect, tmp_path):
    done = detect("--span", "query_last", "-o", "a.json")
    assert done.code == 0, done.err
    assert "L1H2" in done.out
    assert "rule f1 over 4 labelled texts" in done.out
    scores = load_heads(tmp_path / "a.json")
    assert (scores.score, scores.top(1).heads) == ("mdqa", ((1, 2),))
    assert set(scores.tables) == set(RULES)
    assert (tmp_path / "a.heatmap.png").exists()


def test_every_option_is_heard(detect, tmp_path):
    done = detect("--span", "query", "--rule", "ap", "--tau", "0.1", "--normalize", "share", "-o", "b.json", "--json")
    assert done.code == 0, done.err
    made = load_heads(tmp_path / "b.json").provenance
    assert (made["rule"], made["tau"], made["normalize"], made["scoring"]["span"]) == ("ap", 0.1, "share", "query")


@pytest.mark.slow
def test_wrong_input_is_refused(detect, files, tmp_path):  # noqa: F811
    rows = [{"query": "a", "passages": ["x", "y"], "gold": gold} for gold in ([], [0, 1])]
    (files / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (files / "lost.jsonl").write_text('{"query": "a", "passages": ["x", "y"], "gold": [2]}')
    check_refused(detect(data="bad.jsonl"), "none of 2 queries has both a gold passage and another one")
    check_refused(detect(data="lost.jsonl"), "gold passage 2 does not exist; there are 2")
    check_refused(detect(data="p.jsonl"), "expected")
    check_refused(detect("--tau", "1.5"), "tau is an attention mass, at least 0 and below 1; got 1.5")
    check_refused(detect("--rule", "ndcg"), "unknown rule 'ndcg'; use f1, em, precision, recall or ap")
    check_refused(detect("--span", "first"), "unknown span 'first'; use official, query, last or query_last")
    check_refused(detect("--normalize", "sum"), "unknown normalize 'sum'; use none or share")
    check_refused(detect("--trim", "2"), "No such option: --trim")
    assert not list(tmp_path.glob("headwise-out/*"))
