"""Coarse to fine: steering against eager passes with an additive mask, votes against loops, stages that can be used alone."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.attention import steer
from headwise.caches.shared import full_cache, shared_past
from headwise.heads import HeadSet, HeadwiseError, PromptError
from headwise.methods.cafe import formula as maths
from headwise.methods.cafe.coarse_to_fine import CoarseToFine
from headwise.methods.cafe.evidence import evidence_scores, second_stage
from headwise.methods.cafe.reader import Boost, PassageReader
from headwise.models.model import Model, as_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage, PassageComposer, RankingExample
from headwise.runtime.passage_table import measure_passages
from headwise.runtime.passages import Scoring, scorable_heads
from headwise.runtime.runner import prefill
from headwise.testing.planted import planted_copier
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.helpers import with_cache
from tests.reference import cafe as slow

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
DELTA = math.log(13)
SPANS, QUESTION, LENGTH = [(3, 7), (10, 12)], (15, 20), 24
IDS = torch.randint(2, 96, (LENGTH,), generator=torch.Generator().manual_seed(3)).tolist()
LAST = {"question": QUESTION[1], "question+generated": LENGTH}
# Families whose models take no 4-D mask of ours, and why; chosen heads are compared with written-out attention in all families.
NO_MASK = {"qwen3_next": "its linear layers read the mask as padding"}
FAMILIES = [f for f in TINY_FAMILIES if f not in NO_MASK]
PASSAGES = ["red door", Passage("the key is blue", "Key"), "a", "wind over the old mill and the sea", "stone"]
QUERY = "where is the key"


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in TINY_FAMILIES}


def tiny(family="llama", positions=512):
    model = tiny_model(family, **({} if family == "gpt2" else {"max_position_embeddings": positions}))
    return Model(model, character_tokenizer())


@pytest.fixture(scope="module")
def model():
    return tiny()


@torch.no_grad()
def logits(model, ids, **options):
    return model(torch.tensor([ids]), **options).logits[0]


def some_heads(hf):
    model = as_model(hf)
    layers = list(model.modules)
    return HeadSet.of([(layers[0], 1), (layers[0], 6), (layers[-1], 0), (layers[-1], 3)], model.heads.shape)


# ---- steering


@pytest.mark.slow
@pytest.mark.parametrize("rows", list(LAST))
@pytest.mark.parametrize("family", FAMILIES)
def test_steering_equals_an_additive_mask(models, family, rows):
    model = models[family]
    wanted = slow.logits_with_mask(model, IDS, slow.bias_matrix(LENGTH, SPANS, (QUESTION[0], LAST[rows]), DELTA))
    with steer(model, None, SPANS, DELTA, rows, QUESTION):
        got = logits(model, IDS)
    torch.testing.assert_close(got, wanted, **TOLERANCE)
    changed = (got - logits(model, IDS)).abs().amax(dim=-1)
    assert changed[: QUESTION[0]].max() < 1e-5  # passages never feel it
    if as_model(model).heads.full_layers:  # else the window of 8 hides the spans from the later rows
        assert changed[QUESTION[0] :].min() > 1e-4


@pytest.mark.parametrize("family", ["llama", "granite", "gemma3_text", "gpt2"])
def test_a_bias_before_scaling_is_scaled_like_query_times_key(models, family):
    model = models[family]
    module = next(iter(as_model(model).modules.values()))
    scaling = getattr(module, "scaling", None) or as_model(model).heads.head_dim ** -0.5
    wanted = slow.logits_with_mask(model, IDS, slow.bias_matrix(LENGTH, SPANS, QUESTION, DELTA * scaling))
    with steer(model, None, SPANS, DELTA, "question", QUESTION, "pre_scale"):
        torch.testing.assert_close(logits(model, IDS), wanted, **TOLERANCE)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_chosen_heads_of_padded_rows_equal_written_out_attention(models, family):
    model, heads = models[family], some_heads(models[family])
    ids, mask = torch.tensor([IDS, IDS[::-1]]), torch.ones(2, LENGTH, dtype=torch.int64)
    mask[1, :4] = 0
    added = slow.bias_matrix(LENGTH, SPANS, QUESTION, DELTA)
    wanted = slow.logits_of_heads(model, ids, set(heads), added, mask)
    with steer(model, heads, SPANS, DELTA, "question", QUESTION), torch.no_grad():
        got = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(got[mask.bool()], wanted[mask.bool()], **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("rows", list(LAST))
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_pieces_over_any_cache_equal_one_pass(models, family, rows):
    """transformers' own cache, which drops what windows cannot see, and rows over a shared past."""
    model = models[family]
    with steer(model, None, SPANS, DELTA, rows, QUESTION), torch.no_grad():
        # Recurrent layers' chunked and stepwise kernels differ a little, also without headwise.
        close = {"atol": 1e-4, "rtol": 1e-4} if as_model(model).is_hybrid else TOLERANCE
        whole = logits(model, IDS)
        parts, past = [], None
        for start, stop in ((0, 9), (9, 17), (17, 22), (22, 23), (23, 24)):
            out = model(torch.tensor([IDS[start:stop]]), **with_cache(past), use_cache=True)
            parts, past = [*parts, out.logits[0]], out.past_key_values
        torch.testing.assert_close(torch.cat(parts), whole, **close)
        cache = full_cache(model)
        prefill(model, cache, IDS[:13])
        with shared_past(model, cache, 2) as both:
            out = model(torch.tensor([IDS[13:]] * 2), **with_cache(both), use_cache=True).logits
        torch.testing.assert_close(out[0], whole[13:], **close)
        torch.testing.assert_close(out[1], whole[13:], **close)


def test_a_bias_of_zero_changes_not_a_bit(models):
    for family in ("llama", "gemma2", "gpt_oss"):
        with steer(models[family], None, SPANS, 0.0, "question", QUESTION):
            inside = logits(models[family], IDS)
        with steer(models[family], HeadSet((), as_model(models[family]).heads.shape), SPANS, DELTA):
            assert torch.equal(logits(models[family], IDS), inside)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "granite", "mistral"])
def test_a_huge_bias_hides_everything_else_from_the_question(models, family):
    model = models[family]
    inside = slow.bias_matrix(LENGTH, SPANS, QUESTION, 1.0).bool()
    others = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    others[QUESTION[0] : QUESTION[1]] = False
    keep = inside | others
    if family in ("mistral", "gemma3_text"):  # rows that see no span keep what they see, window by window
        spans = [(10, 15)]
        keep = slow.bias_matrix(LENGTH, spans, QUESTION, 1.0).bool() | others
    else:
        spans = SPANS
    wanted = slow.logits_with_mask(model, IDS, torch.zeros(LENGTH, LENGTH), keep)
    with steer(model, None, spans, 50.0, "question", QUESTION):
        torch.testing.assert_close(logits(model, IDS), wanted, atol=5e-5, rtol=1e-4)


def test_generating_inside_the_block_is_steering_step_by_step(models):
    """Windows of 8 behind a prompt of 20: the cache of `generate` holds less than the text."""
    for family in ("gemma3_text", "mistral", "llama"):
        model, prompt = models[family], IDS[: QUESTION[1]]
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
        with steer(model, None, SPANS, 3.0, "question+generated", QUESTION):
            fast = model.generate(torch.tensor([prompt]), **options)[0].tolist()
        text = list(prompt)
        for _ in range(6):
            added = slow.bias_matrix(len(text), SPANS, (QUESTION[0], len(text)), 3.0)
            text.append(int(slow.logits_with_mask(model, text, added)[-1].argmax()))
        assert fast == text


def test_the_model_is_as_before(models):
    for family in ("llama", "gpt_oss", "qwen3_next"):
        model = models[family]
        before, name = logits(model, IDS), model.config._attn_implementation
        attributes = {n: sorted(vars(m)) for n, m in model.named_modules()}
        with steer(model, None, SPANS, DELTA, "question", QUESTION):
            logits(model, IDS)
        with pytest.raises(RuntimeError, match="inside"), steer(model, None, SPANS, DELTA):
            raise RuntimeError("inside")
        assert model.config._attn_implementation == name
        assert {n: sorted(vars(m)) for n, m in model.named_modules()} == attributes
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert torch.equal(logits(model, IDS), before)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llama", {"rows": "generated"}, "unknown rows 'generated'; use all, question"),
        ("llama", {"bias_position": "middle"}, "unknown bias_position"),
        ("llama", {"bias": math.inf}, "must be a finite number; got inf"),
        ("llama", {"spans": [(4, 4)]}, r"span \[4, 4\) holds no position"),
        ("llama", {"spans": [(4, 16)]}, "does not end before the question, which starts at 15"),
        ("llama", {"question": None}, r"needs question=\(start, stop\)"),
        ("llama", {"rows": "all"}, "takes no question"),
        ("llama", {"heads": HeadSet.of([(0, 0)], (2, 2))}, "belong to a model of 2 layers"),
        ("gemma2", {"bias_position": "pre_scale"}, "caps its logits"),
    ],
)
def test_steering_refuses_what_it_cannot_do(models, family, options, message):
    given = {"heads": None, "spans": SPANS, "bias": 1.0, "rows": "question", "question": QUESTION} | options
    with pytest.raises(HeadwiseError, match=message) as caught, steer(models[family], **given):
        pass
    assert "\n" not in str(caught.value)


def test_a_part_of_a_model_with_windows_is_refused_over_a_cache(models):
    model = models["mistral"]
    with steer(model, None, SPANS, 1.0), torch.no_grad():
        past = model.model(torch.tensor([IDS[:20]]), use_cache=True).past_key_values
        with pytest.raises(HeadwiseError, match="call the whole model"):
            model.model(torch.tensor([IDS[20:]]), **with_cache(past))


# ---- maths

MASSES = st.integers(1, 6).flatmap(
    lambda passages: st.lists(
        st.lists(st.sampled_from([0.0, 0.0, 1e-13, 0.01, 0.01, 0.2, 0.5, 1.0]), min_size=passages, max_size=passages),
        min_size=1,
        max_size=4,
    )
)


@settings(max_examples=60)
@given(MASSES, st.data())
def test_shares_votes_and_relevance_equal_loops(masses, data):
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=len(masses[0]), max_size=len(masses[0])))
    for pool in maths.DOC_POOL:
        beta = maths.passage_shares(np.array(masses), np.array(lengths), pool)
        np.testing.assert_allclose(beta, slow.shares(masses, lengths, pool), rtol=1e-12)
        assert not beta[:, np.array(lengths) == 0].any()
        assert all(math.isclose(total, 1) or total == 0 for total in beta.sum(axis=1))
        most = data.draw(st.integers(1, 5))
        chosen = maths.votes(beta, most)
        assert chosen.tolist() == slow.votes(beta.tolist(), most)
        gamma = maths.relevance(beta)
        np.testing.assert_allclose(gamma, slow.relevance(beta.tolist()))
        order = maths.ascending(chosen, gamma)
        assert sorted(order) == chosen.tolist()
        assert all(gamma[a] < gamma[b] or (gamma[a] == gamma[b] and a > b) for a, b in pairwise(order))
        assert -1 <= maths.margin(gamma, chosen, len(beta)) <= 1 + 1e-12


def test_the_example_of_the_paper_and_edges():
    lengths = np.array([4, 4, 4, 4])
    beta = maths.passage_shares(np.array([[0.2, 0.3, 0.4, 0.1]]) / 5, lengths)
    np.testing.assert_allclose(beta[0, [0, 1]].sum(), 0.5)
    assert maths.margin(np.array([0.5, 0.3, 0.2]), [0], 1) == pytest.approx(0.2)
    assert maths.margin(np.array([0.5, 0.3]), [0, 1], 2) == pytest.approx(0.15)
    assert maths.margin(np.array([0.5, 0.3]), [], 1) == 0
    with pytest.raises(HeadwiseError, match="unknown doc_pool 'max'; use sum or mean"):
        maths.passage_shares(np.ones((1, 2)), np.ones(2, int), "max")
    with pytest.raises(HeadwiseError, match="at least 1 passage; got 0"):
        maths.votes(beta, 0)


# ---- finding heads

TREES = [
    f"{a} {b} {c}"
    for a, b, c in (("oak", "poplar", "snow"), ("fir", "larch", "rain"), ("elder", "hazel", "sun"), ("yew", "maple", "hail"))
]


def planted_examples():
    """The planted head finds the place behind the two words of the query."""
    return [
        RankingExample(text.rsplit(" ", 1)[0], tuple(Passage(f"so {t} again") for t in TREES), frozenset({i}))
        for i, text in enumerate(TREES)
    ]


@pytest.fixture(scope="module")
def planted():
    model, tokenizer = planted_copier(texts=[f"Passage {i}: so {t} again. Question: Answer: N/A" for i, t in enumerate(TREES, 1)])
    return Model(model, tokenizer)


@pytest.fixture(scope="module")
def table(planted):
    composer = PassageComposer(PieceEncoder(planted.tokenizer))
    return measure_passages(planted.hf, planted, composer, planted_examples(), Scoring(span="query"))


@pytest.fixture(scope="module")
def random_table(model):
    """Three queries over passages of a model in which every head looks everywhere."""
    passages = tuple(p if isinstance(p, Passage) else Passage(p) for p in PASSAGES)
    examples = [
        RankingExample(q, passages[:n], frozenset(g)) for q, n, g in ((QUERY, 5, {1}), ("red", 3, {0, 2}), ("wind", 4, {3}))
    ]
    return measure_passages(model.hf, model, PassageComposer(PieceEncoder(model.tokenizer)), examples)


@pytest.mark.parametrize("pool", maths.DOC_POOL)
def test_evidence_is_the_mean_share_on_gold(random_table, pool):
    table, scores = random_table, evidence_scores(random_table, pool)
    examples = []
    for raw, gold, lengths in zip(table.raw.astype(float), table.gold, table.lengths, strict=True):
        there = lengths > 0
        beta = [slow.shares(of_layer[:, there].tolist(), lengths[there].tolist(), pool) for of_layer in raw]
        examples.append((beta, np.flatnonzero(gold).tolist()))
    np.testing.assert_allclose(scores.values, slow.evidence(examples), atol=1e-6)
    assert scores.score == "evidence"
    assert scores.runs.shape == (3, 4, 8)
    assert scores.provenance["heads_without_mass"] == 0
    json.dumps(dict(scores.provenance))


def test_evidence_finds_the_planted_head(table):
    scores = evidence_scores(table)
    assert scores.values[1, 2] == pytest.approx(1, abs=1e-3)
    assert scores.top(1).heads == ((1, 2),)
    assert scores.provenance["heads_without_mass"] == 7  # the others look elsewhere


def test_heads_that_look_at_no_passage_are_not_scored(random_table):
    table, raw = random_table, random_table.raw.copy()
    raw[:, 0, 1] *= 1e-5
    raw[0, 0, 3] = 0  # once only: stays
    scores = evidence_scores(replace(table, raw=raw))
    assert np.isnan(scores.values[0, 1])
    assert np.isnan(scores.runs[:, 0, 1]).all()
    assert np.isnan(scores.values).sum() == scores.provenance["heads_without_mass"] == 1
    assert scores.runs[0, 0, 3] == 0
    with pytest.raises(HeadwiseError, match="normalize 'sum'"):
        evidence_scores(replace(table, scoring=Scoring(normalize="mean")))


def test_sliding_layers_have_no_evidence_score():
    model = tiny("gemma3_text")
    example = RankingExample(QUERY, tuple(Passage(t) for t in ("red", "the key", "b")), frozenset({1}))
    found = measure_passages(model.hf, model, PassageComposer(PieceEncoder(model.tokenizer)), [example])
    scores = evidence_scores(found)
    assert np.isnan(scores.values[:2]).all()
    assert np.isfinite(scores.values[2:]).all()
    assert scores.provenance["layers_left_out"] == [0, 1]


def test_second_stage_examples_are_what_was_kept():
    example = planted_examples()[2]
    (kept,) = second_stage([example], [[3, 2, 0]])
    assert [p.text for p in kept.passages] == [example.passages[i].text for i in (3, 2, 0)]
    assert kept.gold == {1}
    (lost,) = second_stage([example], [[0, 1]])
    assert lost.gold == set()
    for wrong in ([[0, 0]], [[4]], []):
        with pytest.raises(PromptError, match="kept"):
            second_stage([example], wrong)


# ---- both stages


def run(model, **options):
    heads = HeadSet.of([(0, 1), (2, 5), (1, 3)], model.heads.shape)
    fine = HeadSet.of([(3, 2), (1, 0)], model.heads.shape)
    return CoarseToFine(model, heads, fine, **{"m1": 2, "m2": 1} | options)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "qwen3_next", "gpt2"])
def test_question_rows_over_the_cache_equal_a_full_steered_pass(family):
    """Exactness (method card, claim 8), and the masses that the fine stage sees are those of a pass over everything."""
    model = tiny(family)
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    reader = PassageReader(model.hf, composer, PASSAGES)
    for rows in LAST:
        with reader.asking(QUERY, Boost((1, 3), DELTA, rows)) as (ids, cache), torch.no_grad():
            new = torch.tensor([ids[reader.tokens :]])
            got = model.hf(new, **with_cache(cache), use_cache=True).logits[0]
        question, spans = (reader.tokens, len(ids)), [reader.spans[1], reader.spans[3]]
        if family == "qwen3_next":
            with steer(model.hf, None, spans, DELTA, rows, question):
                wanted = logits(model.hf, list(ids))
        else:
            wanted = slow.logits_with_mask(model.hf, list(ids), slow.bias_matrix(len(ids), spans, question, DELTA))
        close = {"atol": 1e-4, "rtol": 1e-4} if family == "qwen3_next" else TOLERANCE
        torch.testing.assert_close(got, wanted[reader.tokens :], **close)
    heads = HeadSet(scorable_heads(model).heads[:10], model.heads.shape)
    example = RankingExample(QUERY, tuple(p if isinstance(p, Passage) else Passage(p) for p in PASSAGES), frozenset({1}))
    found = measure_passages(model.hf, model, composer, [example], seed=None)
    wanted = [found.raw[0, layer, head] for layer, head in sorted(heads)]
    np.testing.assert_allclose(reader.head_masses(QUERY, heads, Scoring()), wanted, atol=1e-5)


def test_answers_are_those_of_plain_decoding_with_steering(model):
    """Greedy, token by token, from one eager steered pass each."""
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    for rows in LAST:
        result = run(model, rows=rows, delta=3.0).answer(QUERY, PASSAGES, 5, stop=())
        assert result.steered
        shared = composer.passages([p if isinstance(p, Passage) else Passage(p) for p in (PASSAGES[i] for i in result.kept)])
        spans = [tuple(shared.span(f"passage/{result.kept.index(i) + 1}")) for i in result.candidates]
        text = [*shared.ids, *composer.query(QUERY).ids]
        question = (len(shared.ids), len(text))
        for token in result.ids:
            stop = question[1] if rows == "question" else len(text)
            added = slow.bias_matrix(len(text), spans, (question[0], stop), 3.0)
            text.append(int(slow.logits_with_mask(model.hf, text, added)[-1].argmax()))
            assert text[-1] == token
        assert len(result.ids) == 5


def test_stages_do_what_they_say(model):
    found = run(model).coarse(QUERY, PASSAGES)
    assert found.beta.shape == (3, 5)
    np.testing.assert_allclose(found.beta.sum(axis=1), 1)
    assert sorted(found.kept) == slow.votes(found.beta.tolist(), 2)
    assert list(found.kept) == sorted(found.kept, key=lambda i: found.gamma[i])
    everything = run(model, filter=False).coarse(QUERY, PASSAGES)
    assert sorted(everything.kept) == [0, 1, 2, 3, 4]
    assert list(everything.kept) == sorted(range(5), key=lambda i: (everything.gamma[i], -i))
    assert run(model, reorder=False).coarse(QUERY, PASSAGES).kept == tuple(sorted(found.kept))
    assert run(model, m1=5).coarse(QUERY, PASSAGES).kept == everything.kept
    fine = run(model).fine(QUERY, PASSAGES)
    assert list(fine.candidates) == slow.votes(fine.beta.tolist(), 1)
    assert fine.margin == pytest.approx(maths.margin(fine.gamma, fine.candidates, 2))
    long = run(model, doc_pool="mean").coarse(QUERY, PASSAGES)
    assert not np.allclose(long.beta, found.beta)


def test_a_whole_answer_says_what_was_done(model):
    result = run(model).answer(QUERY, PASSAGES, 4)
    assert result.kept == run(model).coarse(QUERY, PASSAGES).kept
    kept = [PASSAGES[i] for i in result.kept]
    assert result.candidates == tuple(result.kept[i] for i in run(model).fine(QUERY, kept).candidates)
    assert result.steered
    np.testing.assert_array_equal(result.gamma, result.coarse.gamma)
    assert result.text == PieceEncoder(model.tokenizer).decode([i for i in result.ids if i > 2]).strip()
    plain = run(model, filter=False, reorder=False, steer=False).answer(QUERY, PASSAGES, 4)
    assert (plain.kept, plain.candidates, plain.steered) == ((0, 1, 2, 3, 4), (), False)
    assert plain.coarse is plain.fine is plain.gamma is None
    unsteered = run(model, delta=0.0).answer(QUERY, PASSAGES, 4)
    assert not unsteered.steered
    assert unsteered.ids == run(model, steer=False).answer(QUERY, PASSAGES, 4).ids
    careful = run(model, min_margin=1.1).answer(QUERY, PASSAGES, 4)
    assert not careful.steered
    assert careful.candidates == result.candidates
    assert careful.ids == unsteered.ids


def test_few_passages(model):
    one = run(model).answer(QUERY, ["the key"], 4)
    assert (one.kept, one.candidates, one.steered, one.coarse) == ((0,), (), False, None)
    assert run(model, m1=4, reorder=False).answer(QUERY, PASSAGES[:3], 2).coarse is None  # nothing to filter
    two = run(model, m1=4).answer(QUERY, PASSAGES[:2], 2)
    assert sorted(two.kept) == [0, 1]
    with pytest.raises(PromptError, match="no passages"):
        run(model).answer(QUERY, [])
    with pytest.raises(PromptError, match="passage 2 is empty"):
        run(model).answer(QUERY, ["a", " "])
    with pytest.raises(PromptError, match=r"need \d+ tokens, but the model has 512 positions"):
        run(model, filter=False, reorder=False).answer(QUERY, ["word " * 60] * 3)


def test_heads_without_an_opinion_choose_nothing(model, monkeypatch):
    monkeypatch.setattr("headwise.methods.cafe.coarse_to_fine.passage_shares", lambda masses, *_: np.zeros_like(masses))
    result = run(model).answer(QUERY, PASSAGES, 2)
    assert result.kept == (0, 1, 2, 3, 4)
    assert (result.candidates, result.steered) == ((), False)


def test_the_planted_head_keeps_the_evidence_and_answers(planted, table):
    heads = evidence_scores(table).top(1)
    for example in planted_examples():
        method = CoarseToFine(planted, heads, heads, m1=2, m2=1)
        assert example.gold <= set(method.coarse(example.query, example.passages).kept)
        result = method.answer(example.query, example.passages, 1)
        assert result.kept[-1] in example.gold
        assert set(result.candidates) == example.gold


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m1": 0}, "votes per head, at least 1; got 0 and 2"),
        ({"delta": -1.0}, "delta must be at least 0; got -1"),
        ({"delta": math.nan}, "finite number"),
        ({"rows": "all"}, "would steer the passages"),
        ({"rows": "some"}, "unknown rows"),
        ({"bias_position": "no"}, "unknown bias_position"),
        ({"doc_pool": "max"}, "unknown doc_pool"),
        ({"span": "all"}, "unknown span"),
        ({"wording": "fancy"}, "unknown passage layout"),
        ({"coarse_heads": None}, "no coarse_heads were given"),
        ({"fine_heads": HeadSet((), (4, 8))}, "no fine_heads were given"),
        ({"coarse_heads": HeadSet.of([(0, 0)], (2, 2))}, "belong to a model of 2 layers"),
    ],
)
def test_wrong_options_are_refused_in_one_line(model, options, message):
    heads = HeadSet.of([(0, 1)], model.heads.shape)
    with pytest.raises(HeadwiseError, match=message) as caught:
        CoarseToFine(model, **{"coarse_heads": heads, "fine_heads": heads} | options)
    assert "\n" not in str(caught.value)


def test_other_wrong_requests(model):
    gemma = tiny("gemma3_text")
    with pytest.raises(HeadwiseError, match="L0H1 of coarse_heads lies in a layer with a sliding window"):
        CoarseToFine(gemma, HeadSet.of([(0, 1)], gemma.heads.shape), HeadSet.of([(3, 1)], gemma.heads.shape))
    with pytest.raises(HeadwiseError, match="max_new_tokens must be at least 1"):
        run(model).answer(QUERY, PASSAGES, 0)
    with pytest.raises(HeadwiseError, match="no coarse_heads were given to look with"):
        CoarseToFine(model, None, None, filter=False, reorder=False, steer=False).coarse(QUERY, PASSAGES)
