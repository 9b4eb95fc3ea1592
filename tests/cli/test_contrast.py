"""`headwise generate --contrast`: its words, its results, and what is refused."""

import json

import numpy as np
import pytest
import torch

import headwise as hw
from headwise import Without, contrastive_generate
from headwise.heads import HeadScores, load_heads, save_heads
from headwise.models.load import load
from tests.cli.test_refusals import check_refused

PROMPT = "the river was slow and the old river"


@pytest.fixture
def files(planted, tmp_path):
    (tmp_path / "given").mkdir()
    shape = load(planted.model).heads.shape
    save_heads(HeadScores(np.random.default_rng(0).random(shape), "copy"), tmp_path / "given" / "h.json")
    (tmp_path / "given" / "negative.txt").write_text("the old river")
    (tmp_path / "given" / "empty.txt").write_text(" \n")
    (tmp_path / "given" / "same.txt").write_text(PROMPT)
    return tmp_path / "given"


def run(headwise, planted, contrast, *more):
    done = headwise("generate", planted.model, "--prompt", PROMPT, "--max-new-tokens", 5, "--contrast", contrast, "--json", *more)
    assert done.code == 0, done.err
    return json.loads(done.out), done.err


def test_heads_are_taken_away(planted, headwise, files):
    found, _ = run(headwise, planted, f"heads:{files / 'h.json'},top=1,combine=entropy,cap=2,scope=all,mode=uniform")
    model = load(planted.model)
    negative = Without(load_heads(files / "h.json").top(1), "uniform", "all")
    made = contrastive_generate(model, PROMPT, negative, combine="entropy", cap=2, max_new_tokens=5)
    assert (found["text"], found["new_tokens"], found["tokens"]) == (made.text, len(made.ids), len(model.tokenizer.encode(PROMPT)))
    assert found["alphas"] == pytest.approx(made.alphas, abs=1e-5)
    assert found["contrast"] == {
        "negative": "heads", "source": "h.json", "top": 1, "scope": "all", "mode": "uniform",
        "combine": "entropy", "alpha": 1.0, "plausibility": None, "cap": 2.0,
    }  # fmt: skip


@pytest.mark.slow
def test_a_prompt_without_documents(planted, headwise, files):
    found, _ = run(headwise, planted, f"prompt:{files / 'negative.txt'},alpha=0.4,plausibility=0.1")
    made = contrastive_generate(load(planted.model), PROMPT, "the old river", 0.4, 0.1, max_new_tokens=5)
    assert found["text"] == made.text
    assert found["contrast"]["alpha"] == 0.4
    assert "alphas" not in found  # the same at every step
    drawn = f"prompt:{files / 'negative.txt'},combine=adaptive,temperature=3,top_p=0.9,seed=4"
    found, again = run(headwise, planted, drawn)[0], run(headwise, planted, drawn)[0]
    assert found == again
    assert found["contrast"] | {"temperature": 3.0, "top_p": 0.9, "seed": 4} == found["contrast"]
    assert len(found["alphas"]) == found["new_tokens"]


@pytest.mark.slow
def test_a_weaker_model(planted, headwise, tmp_path):
    weaker = hw.load(str(planted.model))
    with torch.no_grad():
        weaker.hf.lm_head.weight.mul_(1.001)  # hardly weaker: it says the same
    weaker.hf.save_pretrained(tmp_path)
    weaker.tokenizer.save_pretrained(tmp_path)
    found, _ = run(headwise, planted, f"model:{tmp_path},combine=routed")
    assert found["alphas"] == [0.0] * found["new_tokens"]
    plain = headwise("generate", planted.model, "--prompt", PROMPT, "--max-new-tokens", 5, "--json")
    assert found["text"] == json.loads(plain.out)["text"]
    itself = headwise("generate", planted.model, "--prompt", PROMPT, "--contrast", f"model:{planted.model}")
    check_refused(itself, "the weaker model is the model itself")


def test_people_read_one_line_below_the_text_and_are_warned_about_many_heads(planted, headwise, files):
    done = headwise(
        "generate", planted.model, "--prompt", PROMPT, "--max-new-tokens", 3, "--contrast", f"heads:{files / 'h.json'},top=5"
    )
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "contrast with heads h.json, alpha 0.2; faithful to its prompt is not the same as true"
    assert "of the heads are taken away" in done.err
    found, err = run(headwise, planted, f"heads:{files / 'h.json'},top=1")
    assert "taken away" not in err
    assert found["contrast"]["top"] == 1


@pytest.mark.parametrize(
    ("contrast", "parts"),
    [
        ("magic:h.json", ["unknown contrast 'magic'", "write heads:FILE,top=8 or model:NAME or control:alpha=0.5 or prompt:FILE"]),
        ("", ["unknown contrast ''"]),
        ("heads", ["heads needs a file right behind the colon: heads:FILE"]),
        ("model:alpha=2", ["model needs a name right behind the colon"]),
        ("heads:given/h.json", ["heads needs a number of heads: heads:FILE,top=8"]),
        ("heads:given/h.json,top=0", ["0"]),
        ("heads:given/h.json,top=999", ["999"]),
        ("heads:given/h.json,top=many", ["top must be a whole number; got 'many'"]),
        ("heads:given/h.json,top=1,mode=mean", ["modes zero, uniform; got 'mean'"]),
        ("heads:given/h.json,top=1,scope=some", ["unknown scope 'some'"]),
        ("heads:given/h.json,top=1,size=3", ["heads has no option 'size'", "top, mode, scope, combine, alpha"]),
        ("heads:none.json,top=1", ["no such head file: none.json"]),
        ("prompt:none.txt", ["cannot read the negative prompt from none.txt"]),
        ("prompt:given/empty.txt", ["the negative prompt is empty"]),
        ("prompt:given/same.txt", ["both prompts have the same tokens"]),
        ("prompt:given/negative.txt,top=3", ["prompt has no option 'top'"]),
        ("prompt:given/negative.txt,alpha=1,alpha=2", ["gives alpha twice"]),
        ("prompt:given/negative.txt,alpha=nan", ["alpha must be a finite number"]),
        ("prompt:given/negative.txt,alpha=-3", ["alpha must lie in [-1, 1e+06] for combine=fixed"]),
        ("prompt:given/negative.txt,plausibility=2", ["plausibility must be above 0 and at most 1"]),
        ("prompt:given/negative.txt,cap=2", ["a cap belongs to combine=entropy"]),
        ("prompt:given/negative.txt,combine=best", ["unknown rule 'best'"]),
        ("prompt:given/negative.txt,temperature=-1", ["temperature must be at least 0"]),
        ("prompt:given/negative.txt,top_p=2", ["top_p must be above 0 and at most 1"]),
        ("model:given/none", ["given/none"]),
        ("model:lab-6m", ["have different vocabularies"]),
    ],
)
def test_wrong_words_are_refused_in_one_line(planted, headwise, files, contrast, parts):
    before = sorted(files.parent.rglob("*"))
    check_refused(headwise("generate", planted.model, "--prompt", PROMPT, "--contrast", contrast), *parts)
    assert sorted(files.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "other", [["--cache", "full"], ["--prefill-chunk", "8"], ["--save-cache", "c.safetensors"], ["--load-cache", "c.safetensors"]], ids=str
)
def test_a_contrast_and_a_cache_do_not_go_together(planted, headwise, files, other):
    given = ("generate", planted.model, "--prompt", PROMPT, "--contrast", f"prompt:{files / 'negative.txt'}", *other)
    check_refused(headwise(*given), "--contrast reads its prompts into full caches of its own", f"leave {other[0]} out")
    assert not (files.parent / "c.safetensors").exists()
