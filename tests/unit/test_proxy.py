"""Proxy prompts, proxy scores against a slow loop, a planted head that must be found, and the mistakes that a reproduction made."""

import json

import numpy as np
import pytest
import torch

from headwise.heads import HeadScores, HeadwiseError, PromptError
from headwise.methods.influence import proxy
from headwise.methods.influence.options import Proxy
from headwise.methods.influence.prompts import INTRO, ProxyPrompts
from headwise.methods.influence.proxy import describe_run, proxy_scores, top_share
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts
from headwise.runtime.rundir import RunDirectory
from headwise.testing.planted import planted_copier
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.reference.influence import proxy_table

EVERYTHING = Proxy(min_accuracy=0.0)


def made_up(sentences=60, words=5, seed=0):
    """Sentences in which no word occurs twice."""
    syllables = [a + b for a in "bdfgklmprstvz" for b in "aeiou"]
    every = np.random.default_rng(seed).permutation([a + b + c for a in syllables for b in syllables for c in "nx"])
    rows = every[: sentences * words].reshape(sentences, words)
    return " ".join(" ".join(row) + "." for row in rows)


@pytest.fixture(scope="module")
def tokenizer():
    return load(str(bundled_model("world-6m")), "cpu").tokenizer


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return ProxyPrompts(bundled_texts(), PieceEncoder(tokenizer), Proxy(length=900, samples=20, key_length=12, value_tokens=30))


@pytest.fixture(scope="module")
def tiny():
    """A random hf and prompts of characters that fit it."""
    hf = tiny_model("llama", max_position_embeddings=400)
    model = Model(hf, character_tokenizer())
    options = Proxy(length=400, samples=6, shots=1, key_length=4, value_tokens=40)
    return model, ProxyPrompts([made_up()], PieceEncoder(model.tokenizer), options)


# --- prompts --------------------------------------------------------------------------------------------------------------------------


def parts_of(text):
    """(JSON object, [(key, answer)]) of a prompt's text."""
    context, *asked = text.split("\nQuestion: ")
    pairs = [question.split("\nAnswer: ") for question in asked]
    return json.loads(context.split("\n", 1)[1]), [(json.loads(key), answer) for key, answer in pairs]


@pytest.mark.parametrize("index", [0, 7, 19])
def test_a_prompt_is_what_it_says(prompts, tokenizer, index):
    prompt, encoder = prompts[index], PieceEncoder(tokenizer)
    text = encoder.decode(prompt.ids)
    table, asked = parts_of(text.removeprefix(encoder.decode(encoder.bos)))
    assert text.removeprefix(encoder.decode(encoder.bos)).startswith(INTRO)
    assert len(asked) == 4
    assert len({key for key, _ in asked}) == 4
    assert all(json.loads(answer) == table[key] for key, answer in asked[:3])
    key, opened = asked[3]
    assert opened == ' "'.strip()
    assert encoder.decode(prompt.gold).strip() == table[key]
    assert all(len(key) == 12 and key.isalnum() for key in table)
    for number, (key, value) in enumerate(table.items(), 1):
        assert encoder.decode(prompt.ids[slice(*prompt.span(f"pair/{number}/key"))]) == key
        assert encoder.decode(prompt.ids[slice(*prompt.span(f"pair/{number}/value"))]).strip() == value
        assert prompt.span(f"pair/{number}/value").length <= 30
    assert prompt.ids[slice(*prompt.span("value"))] == prompt.gold
    assert prompt.span("value") == prompt.span("answer") == prompt.span(f"pair/{list(table).index(asked[3][0]) + 1}/value")


def test_as_many_pairs_as_fit(prompts):
    for index in range(8):
        prompt = prompts[index]
        size = len(prompt.ids) + len(prompt.gold)
        # What is left would not take one more pair of a key of 12 characters and the longest value.
        assert 900 - 60 < size <= 900


def test_prompts_are_seeded_and_stand_alone(prompts, tokenizer):
    encoder = PieceEncoder(tokenizer)
    options = Proxy(length=900, samples=20, key_length=12, value_tokens=30)
    again = ProxyPrompts(bundled_texts(), encoder, options)
    assert again[13] == prompts[13]
    assert again[2] == prompts[2]
    assert prompts[2] != prompts[3]
    assert (
        ProxyPrompts(bundled_texts(), encoder, Proxy(length=900, samples=20, key_length=12, value_tokens=30, seed=1))[2]
        != prompts[2]
    )
    assert again.digest == prompts.digest != ProxyPrompts([made_up()], encoder, options).digest
    with pytest.raises(IndexError):
        prompts[20]


def test_the_question_is_about_any_place(tokenizer):
    many = ProxyPrompts([made_up()], PieceEncoder(tokenizer), Proxy(length=2000, samples=200, pairs=8, key_length=6))
    counts = np.bincount(
        [next(n for n in range(1, 9) if p.span(f"pair/{n}/value") == p.span("value")) for p in many], minlength=9
    )
    assert counts.sum() == 200
    assert counts[1:].min() > 8  # 25 expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length must be a whole number of at least 1; got 0"),
        ({"samples": 0}, "samples must be a whole number of at least 1; got 0"),
        ({"shots": -1}, "shots must be a whole number of at least 0; got -1"),
        ({"key_length": 3}, "key_length must be a whole number of at least 4; got 3"),
        ({"pairs": 3}, "3 pairs are too few for 3 demonstrations and a question; give at least 4"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(PromptError, match=message):
        Proxy(**options)


def test_prompts_that_cannot_be_made_are_refused(tokenizer):
    encoder = PieceEncoder(tokenizer)
    with pytest.raises(
        PromptError, match=r"a proxy prompt of 4 pairs takes .* tokens with its answer, but the length is 100; use"
    ):
        ProxyPrompts([made_up()], encoder, Proxy(length=100, key_length=32, value_tokens=30))[0]
    with pytest.raises(PromptError, match="a proxy prompt of 50 pairs takes"):
        ProxyPrompts([made_up()], encoder, Proxy(length=400, pairs=50, key_length=32, value_tokens=30))[0]
    with pytest.raises(
        PromptError, match=r"the texts hold 2 sentences of at most 30 tokens .* but a prompt needs 4; give more text"
    ):
        ProxyPrompts(['Only two of them. Can be used here. "Not this one." Nor this {one}. Short.'], encoder, Proxy())[0]


# --- scores -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["set", "multiset"])
def test_scores_equal_the_slow_loop(tiny, rule):
    model, prompts = tiny
    scores = proxy_scores(model, prompts, Proxy(rule=rule, min_accuracy=0.0))
    expected = np.array([proxy_table(model.hf, prompt, rule) for prompt in prompts])
    assert expected.max() > 0
    np.testing.assert_allclose(scores.runs, expected, atol=1e-6)
    np.testing.assert_allclose(scores.values, expected.mean(axis=0), atol=1e-6)
    assert scores.score == "proxy"
    assert len(scores.run_info) == 6


def planted(layers, heads, layer, head, kv_heads, options):
    """A planted model that knows every word of the prompts. What stands in prompt i does not depend on the tokenizer, if all values fit."""
    text = made_up()
    encoder = PieceEncoder(character_tokenizer())
    words = [encoder.decode([*prompt.ids, *prompt.gold]) for prompt in ProxyPrompts([text], encoder, options)]
    model, tokenizer = planted_copier(layers, heads, layer, head, kv_heads=kv_heads, texts=[text, *words], positions=2048)
    return Model(model, tokenizer), ProxyPrompts([text], PieceEncoder(tokenizer), options)


OPTIONS = Proxy(length=2048, samples=8, pairs=5, key_length=8, value_tokens=100)


@pytest.mark.parametrize(("layers", "heads", "layer", "head", "kv_heads"), [(2, 4, 1, 2, 4), (3, 4, 2, 0, 2), (3, 6, 1, 5, 6)])
def test_a_planted_head_is_found(layers, heads, layer, head, kv_heads):
    model, prompts = planted(layers, heads, layer, head, kv_heads, OPTIONS)
    scores = proxy_scores(model, prompts, EVERYTHING)
    # The planted head matches the last two tokens, so it can but guess which value begins; it copies the other 4 of 5 words.
    assert 0.8 <= scores.values[layer, head] <= 0.9
    assert scores.provenance["token_accuracy"] >= 0.8
    assert scores.provenance["accuracy"] < 0.5
    assert np.delete(scores.values.ravel(), layer * heads + head).max() < 0.1
    assert [*top_share(scores)] == [(layer, head)]


def test_the_row_before_the_answer_token_counts():
    """Mistake 2: the row of the answer token itself looks at what comes after it, so a copying head would not be seen."""
    model, prompts = planted(2, 4, 1, 2, 4, OPTIONS)
    prompt = prompts[0]
    assert proxy_table(model.hf, prompt)[1][2] >= 0.8
    assert proxy_scores(model, prompts, EVERYTHING).runs[0, 1, 2] >= 0.8
    assert proxy_table(model.hf, prompt, late=1)[1][2] == 0


class Given(list):
    """Prompts made by hand, with what a run wants to know of `ProxyPrompts`."""

    options, digest = Proxy(length=2048, samples=1), "by hand"


def test_equal_tokens_elsewhere_do_not_count():
    """Mistake 2: the head copies every word of the answer, but from a place that is not the value asked for (here: said to be another's)."""
    model, prompts = planted(2, 4, 1, 2, 4, OPTIONS)
    prompt = prompts[0]
    elsewhere = next(span for n in range(1, 6) if (span := prompt.span(f"pair/{n}/value")) != prompt.span("value"))
    assert proxy_scores(model, Given([prompt]), EVERYTHING).values[1, 2] >= 0.8
    moved = type(prompt)(prompt.ids, {**prompt.spans, "value": elsewhere}, prompt.gold)
    with pytest.raises(HeadwiseError, match="no head copied a token of the value"):
        proxy_scores(model, Given([moved]), EVERYTHING)


def test_a_model_that_cannot_do_the_task_is_refused(tiny):
    model, prompts = tiny
    with pytest.raises(HeadwiseError, match=r"the model answered 0 of 6 proxy questions, fewer than 50%, so the heads it uses"):
        proxy_scores(model, prompts)
    with pytest.raises(HeadwiseError, match="answered 0 of 6 proxy questions"):
        proxy_scores(model, prompts, Proxy(wrong="skip", min_accuracy=0.0))


def test_scores_of_nothing_but_zeros_are_refused(tiny, monkeypatch):
    """Mistake 1: a table of zeros has a top 5 %, too: whatever the order of ties puts there."""
    model, prompts = tiny
    monkeypatch.setattr(proxy, "copy_score", lambda argmax, *_: torch.zeros(argmax.shape[:-1]))
    with pytest.raises(HeadwiseError, match="no head copied a token of the value in 6 proxy questions: all scores are 0"):
        proxy_scores(model, prompts, EVERYTHING)
    with pytest.raises(HeadwiseError, match="all 32 heads have the same proxy score"):
        top_share(HeadScores(np.zeros((4, 8)), "proxy"))


def test_prompts_longer_than_the_model_are_refused(tiny):
    model, _ = tiny
    prompts = ProxyPrompts([made_up()], PieceEncoder(model.tokenizer), Proxy(length=401, key_length=32, value_tokens=30))
    with pytest.raises(PromptError, match="proxy prompts of 401 tokens do not fit the model's 400 positions"):
        proxy_scores(model, prompts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "bag"}, "unknown rule 'bag'; use set or multiset"),
        ({"wrong": "drop"}, "unknown wrong 'drop'; use keep or skip"),
        ({"min_accuracy": 1.5}, r"min_accuracy must lie in \[0, 1\]; got 1.5"),
    ],
)
def test_unknown_ways_of_scoring_are_refused(options, message):
    with pytest.raises(HeadwiseError, match=message):
        Proxy(**options)


def test_an_interrupted_run_continues(tiny, tmp_path, monkeypatch):
    model, prompts = tiny
    monkeypatch.setattr(proxy, "GROUP", 2)
    whole = proxy_scores(model, prompts, EVERYTHING)
    parts = RunDirectory(tmp_path / "run", describe_run(model, prompts, EVERYTHING))
    done = []

    def stop(count, total, remark):
        done.append((count, total, remark))
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        proxy_scores(model, prompts, EVERYTHING, parts, stop)
    run, again = proxy._run, []
    monkeypatch.setattr(proxy, "_run", lambda *given: (again.append(given[2]), run(*given))[1])
    scores = proxy_scores(model, prompts, EVERYTHING, parts)
    assert again == [range(4, 6)]
    assert done[0] == (2, 6, "0 of 2 answered")
    np.testing.assert_array_equal(scores.runs, whole.runs)
    assert scores.provenance == whole.provenance


@pytest.mark.parametrize(("shape", "count"), [((20, 16), 16), ((32, 32), 52), ((10, 14), 7), ((2, 3), 1)])
def test_the_top_share_is_rounded_up(shape, count):
    """16 of the paper's 320 heads; 0.05 * 140 is 7.000000000000001 in floating point."""
    values = np.random.default_rng(0).random(shape) + 0.1
    chosen = top_share(HeadScores(values, "proxy"))
    assert len(chosen) == count
    assert min(values[head] for head in chosen) >= np.sort(values.ravel())[-count]
    assert chosen.chosen_by == f"top 5% ({count}) by proxy score"


def test_the_top_share_counts_scored_heads_and_refuses_zeros():
    values = np.zeros((4, 10))
    values[0, :2] = 0.5, 0.25
    assert [str(head) for head in top_share(HeadScores(values, "proxy"))] == ["L0H0", "L0H1"]
    with pytest.raises(HeadwiseError, match="the top 10% are 4 heads, but only 2 have a proxy score above 0"):
        top_share(HeadScores(values, "proxy"), 0.1)
    values[2:] = np.nan
    assert len(top_share(HeadScores(values, "proxy"))) == 1
    for share in (0.0, 1.1):
        with pytest.raises(HeadwiseError, match=r"the share of heads must lie in \(0, 1\]"):
            top_share(HeadScores(values, "proxy"), share)


def test_layers_without_attention_have_no_score():
    hf = tiny_model("qwen3_next", max_position_embeddings=600)
    model = Model(hf, character_tokenizer())
    options = Proxy(length=400, samples=2, shots=0, pairs=2, key_length=4, value_tokens=40)
    scores = proxy_scores(model, ProxyPrompts([made_up()], PieceEncoder(model.tokenizer), options), EVERYTHING)
    assert np.isnan(scores.values[[0, 2]]).all()
    assert not np.isnan(scores.values[[1, 3]]).any()


@pytest.mark.slow
def test_claim_1_a_model_that_retrieves_has_few_strong_heads(tokenizer):
    """world-6m, which was trained on key-value tables of another wording: top heads far above the median."""
    model = load(str(bundled_model("world-6m")), "cpu")
    options = Proxy(length=512, samples=12, pairs=4, key_length=8, value_tokens=12)
    scores = proxy_scores(model, ProxyPrompts(bundled_texts(), PieceEncoder(model.tokenizer), options))
    assert scores.provenance["accuracy"] >= 0.5
    assert scores.values.max() > 0.5
    top = [scores.values[head] for head in top_share(scores)]
    assert len(top) == 4
    assert min(top) >= 3 * np.median(scores.values)
