"""MuDAF's detector: measures against loops, rows that are read, and heads that are found or left out."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise.heads import HeadwiseError
from headwise.methods.mudaf.formula import passage_measures, shares
from headwise.methods.mudaf.options import RULES, Mdqa
from headwise.methods.mudaf.run import mdqa_scores
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage, PassageComposer, RankingExample
from headwise.runtime.detector import find
from headwise.runtime.options import SPANS
from headwise.runtime.passage_table import measure_passages
from headwise.runtime.passages import PassageCache, Scoring
from headwise.testing.planted import planted_copier
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.reference import mudaf as slow
from tests.reference import query as slow_query

PASSAGES = ("red door", Passage("the key is blue", "Key"), "a", "wind over the old mill and the sea", "stone")
EXAMPLES = [
    RankingExample(q, tuple(p if isinstance(p, Passage) else Passage(p) for p in PASSAGES[:n]), frozenset(g))
    for q, n, g in (("where is the key", 5, {1}), ("red", 3, {0, 2}), ("wind", 4, {3}), ("none", 2, set()), ("all", 2, {0, 1}))
]
TAU = 0.15  # random heads spread their attention


def tiny(family="llama"):
    return Model(tiny_model(family, max_position_embeddings=512), character_tokenizer())


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def table(model):
    return measure_passages(model.hf, model, PassageComposer(PieceEncoder(model.tokenizer)), EXAMPLES, Scoring("last"))


# ---- measures

CASES = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=9).filter(lambda rows: any(g for _, g in rows))


def both(rows, tau):
    masses, gold = np.array([m / 12 for m, _ in rows]), np.array([g for _, g in rows])
    found = {name: float(table[0, 0]) for name, table in passage_measures(masses[None, None], gold, tau).items()}
    return masses, gold, found


@given(CASES, st.integers(0, 6))
def test_measures_are_the_slow_loops(rows, threshold):
    """Few different masses, some of them equal to the threshold."""
    masses, gold, found = both(rows, threshold / 12)
    assert found == pytest.approx(slow.measures(masses.tolist(), gold.tolist(), threshold / 12))


@given(CASES, st.integers(0, 6), st.data())
def test_how_the_measures_hang_together(rows, threshold, data):
    tau = threshold / 12
    masses, gold, found = both(rows, tau)
    assert all(0 <= value <= 1 for value in found.values())
    if found["f1"] == 1:
        assert found["em"] == found["precision"] == found["recall"] == 1
    if found["em"]:  # the gold passages are picked; F1 is 1 unless others are picked too
        assert found["recall"] == 1
        assert found["f1"] == pytest.approx(2 * gold.sum() / ((masses > tau).sum() + gold.sum()))
    if len(set(masses)) == len(masses) and found["em"]:
        assert found["ap"] == 1
    assert both(rows, 0.9)[2]["ap"] == found["ap"]  # knows no threshold
    raised_at = data.draw(st.sampled_from(np.flatnonzero(gold).tolist()))
    more = [(m + 1 if i == raised_at else m, g) for i, (m, g) in enumerate(rows)]
    raised = both(more, tau)[2]
    assert all(raised[name] >= found[name] - 1e-12 for name in ("recall", "f1", "ap"))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_shares_sum_to_one_or_are_nothing(numbers):
    found = shares(np.array(numbers, dtype=float)[None, None])[0, 0]
    assert found.sum() == pytest.approx(1 if any(numbers) else 0)
    assert (found >= 0).all()


def test_a_head_that_is_not_scored_has_no_measures():
    masses = np.array([[[0.5, 0.2]], [[np.nan, np.nan]]])
    found = passage_measures(masses, np.array([True, False]))
    assert set(found) == set(RULES)
    assert all(values[0, 0] == 1 and np.isnan(values[1, 0]) for values in found.values())


# ---- scores


@pytest.mark.parametrize("normalize", ["none", "share"])
@pytest.mark.parametrize("rule", RULES)
def test_scores_are_means_of_loops_over_full_passes(table, rule, normalize):
    scores = mdqa_scores(table, rule, TAU, normalize)
    wanted = {name: np.zeros((3, 4, 8)) for name in RULES}
    for i, (raw, gold, lengths) in enumerate(zip(table.raw.astype(float), table.gold, table.lengths, strict=True)):
        there = lengths > 0
        for layer, head in np.ndindex(4, 8):
            masses = raw[layer, head, there]
            masses = masses / masses.sum() if normalize == "share" else masses
            for name, value in slow.measures(masses.tolist(), gold[there].tolist(), TAU).items():
                wanted[name][i, layer, head] = value
    np.testing.assert_allclose(scores.values, wanted[rule].mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(scores.runs, wanted[rule], atol=1e-6)
    assert set(scores.tables) == set(RULES)
    for name, values in scores.tables.items():
        np.testing.assert_allclose(values, wanted[name].mean(axis=0), atol=1e-12)
    assert (scores.score, scores.score_version) == ("mdqa", 1)
    assert (scores.provenance["queries"], scores.provenance["queries_without_gold"]) == (3, 2)
    json.dumps(dict(scores.provenance))


def test_the_masses_are_those_of_the_last_prompt_token(model, table):
    composer, example = PassageComposer(PieceEncoder(model.tokenizer)), EXAMPLES[0]
    order = [int(i) for i in np.random.default_rng([0, 21, 0]).permutation(5)]
    shared, asked = composer.passages([example.passages[i] for i in order]), composer.query(example.query)
    weights = slow.attention(model.hf, [*shared.ids, *asked.ids])
    wanted = np.zeros((4, 8, 5))
    for layer, head in np.ndindex(4, 8):
        for place, i in enumerate(order):
            start, stop = shared.span(f"passage/{place + 1}")
            wanted[layer, head, i] = float(weights[layer][head, -1, start:stop].sum())
    np.testing.assert_allclose(table.raw[0], wanted, atol=1e-5)


@pytest.mark.parametrize("span", SPANS)
def test_every_span_names_the_rows_it_says(model, span):
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    (suffix,) = Scoring(span).suffixes(composer, ["the key"])
    asked = composer.query("the key")
    text = composer.builder.encoder.decode(asked.ids[slice(*suffix.rows)])
    assert text == {"official": "Question: the key\nAnswer:", "query": " the key", "last": ":", "query_last": "y"}[span]
    assert (suffix.rows.stop == len(asked.ids)) == (span in ("official", "last"))
    cache = PassageCache(model.hf, composer.passages([Passage("red")]).ids, None)
    wanted = slow_query.attention_to_prefix(model.hf, composer.passages([Passage("red")]).ids, asked.ids, tuple(suffix.rows))
    for layer, columns in cache.columns([suffix]).items():
        np.testing.assert_allclose(columns[0].numpy(), np.stack([head.numpy() for head in wanted[layer]]), atol=1e-5)


TREES = ["oak poplar snow", "fir larch rain", "elder hazel sun", "yew maple hail"]


@pytest.fixture(scope="module")
def planted():
    model, tokenizer = planted_copier(texts=[f"Passage {i}: so {t} again. Question: Answer: N/A" for i, t in enumerate(TREES, 1)])
    return Model(model, tokenizer)


@pytest.mark.parametrize("rule", RULES)
def test_the_planted_head_is_found(planted, rule):
    """It looks from the last word of the query to the place behind the two words; the other heads rest on the first token."""
    passages = tuple(Passage(f"so {text} again") for text in TREES)
    examples = [RankingExample(text.rsplit(" ", 1)[0], passages, frozenset({i})) for i, text in enumerate(TREES)]
    scores = find(planted, Mdqa(data=examples, span="query_last", rule=rule))
    assert scores.top(1).heads == ((1, 2),)
    assert scores["L1H2"] == 1
    assert np.delete(scores.values.ravel(), 6).max() < (0.8 if rule == "ap" else 0.01)  # `ap` ranks the noise of what a resting head leaves
    assert "token_read" not in scores.provenance
    shared = find(planted, Mdqa(data=examples, span="query_last", rule=rule, normalize="share"))
    assert shared["L1H2"] == 1
    assert np.isnan(shared.values).sum() == shared.provenance["heads_without_mass"] == 7  # the others look at no passage


def test_the_token_that_is_read_is_told(planted):
    examples = [RankingExample("oak poplar", tuple(Passage(f"so {text} again") for text in TREES), frozenset({0}))]
    assert find(planted, Mdqa(data=examples)).provenance["token_read"].strip() == ":"
    made = find(planted, Mdqa(data=examples)).provenance
    assert (made["rule"], made["tau"], made["normalize"], made["scoring"]["span"]) == ("f1", 0.3, "none", "last")


def test_heads_that_see_no_far_passage_have_no_score():
    model = tiny("gemma3_text")
    found = measure_passages(model.hf, model, PassageComposer(PieceEncoder(model.tokenizer)), EXAMPLES[1:3], Scoring("last"))
    for normalize in ("none", "share"):
        scores = mdqa_scores(found, "ap", normalize=normalize)
        for values in (scores.values, *scores.tables.values()):
            assert np.isnan(values[:2]).all()
            assert np.isfinite(values[2:]).all()
        assert scores.provenance["layers_left_out"] == [0, 1]
    assert scores.provenance["heads_without_mass"] == 0


def test_wrong_requests_are_refused_in_one_line(table, model):
    for options, message in (
        ({"rule": "best"}, "unknown rule 'best'; use f1, em, precision, recall or ap"),
        ({"tau": 1.0}, "tau is an attention mass, at least 0 and below 1; got 1"),
        ({"tau": float("nan")}, "got nan"),
        ({"normalize": "logit"}, "unknown normalize 'logit'; use none or share"),
        ({"span": "first"}, "unknown span 'first'; use official, query, last or query_last"),
    ):
        with pytest.raises(HeadwiseError, match=message) as error:
            Mdqa(**options)
        assert "\n" not in str(error.value)
    with pytest.raises(HeadwiseError, match="unknown rule 'best'"):
        mdqa_scores(table, "best")
    with pytest.raises(HeadwiseError, match="unknown normalize 'max'"):
        mdqa_scores(table, normalize="max")
    with pytest.raises(HeadwiseError, match="need one made with normalize 'sum'"):
        mdqa_scores(replace(table, scoring=Scoring(normalize="mean")))
    with pytest.raises(HeadwiseError, match="none of 2 queries has both a gold passage and another one"):
        find(model, Mdqa(data=EXAMPLES[3:]))
