"""`headwise detect proxy`."""

import json

import pytest

from headwise.heads import load_heads

SMALL = ["--samples", "3", "--pairs", "4", "--json"]


@pytest.mark.slow
def test_the_proxy_score_makes_a_head_file(headwise, tmp_path):
    done = headwise("detect", "proxy", "world-6m", *SMALL, "--min-accuracy", "0", "--seed", "5", "-o", "p.json")
    assert done.code == 0, done.err
    scores = load_heads(tmp_path / "p.json")
    assert (scores.score, scores.shape, len(scores.runs)) == ("proxy", (8, 8), 3)
    made = scores.provenance["prompts"]
    assert (made["length"], made["pairs"], made["key_length"], made["value_tokens"], made["seed"]) == (512, 4, 8, 12, 5)
    assert 0 <= scores.provenance["accuracy"] <= 1
    assert json.loads(done.out)["head_file"] == "p.json"
    assert (tmp_path / "p.heatmap.png").exists()
    assert not (tmp_path / "p.json.run").exists()


@pytest.mark.slow
def test_wrong_input_is_refused_in_one_line(headwise, tmp_path):
    for arguments, message in (
        (["--lengths", "300,400"], "No such option"),
        (["--length", "60"], "a proxy prompt of 4 pairs takes"),
        (["--length", "600"], "proxy prompts of 600 tokens do not fit the model's 512 positions"),
        (["--rule", "mass"], "unknown rule 'mass'; use set or multiset"),
        (["--min-accuracy", "1", "--pairs", "12"], "of 3 proxy questions, fewer than 100%"),
    ):
        done = headwise("detect", "proxy", "world-6m", *SMALL, "-o", "p.json", "--seed", "3", *arguments)
        assert done.code == 2
        assert message in done.err, (arguments, done.err)
        assert not (tmp_path / "p.json").exists()
