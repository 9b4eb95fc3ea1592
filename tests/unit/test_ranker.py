"""Finding query heads and ranking with them: exact against separate full passes, a planted head, windows that lose nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import Sequence

from headwise.heads import HeadSet, HeadwiseError, PromptError
from headwise.methods.query.formula import RULES
from headwise.methods.query.ranker import Ranker, rank_collection
from headwise.methods.query.run import query_scores
from headwise.models.model import Model, as_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import LAYOUTS, Passage, PassageComposer, RankingExample
from headwise.prompts.ranking_data import read_ranking_examples
from headwise.runtime.passage_table import measure_passages
from headwise.runtime.passages import OFFICIAL, Scoring, scorable_heads
from headwise.runtime.windows import rank_in_windows, windows
from headwise.stats.agreement import split_half_top_overlap
from headwise.testing.planted import planted_copier
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise_lab.ranking import microworld_examples
from tests.reference import query as slow

PASSAGES = ["red door", Passage("the key is blue", "Key"), "a", "wind over the old mill and the sea", "stone"]
QUERIES = ["where is the key", "red", "who saw the wind over the mill"]


def tiny(family="llama", positions=1024):
    tokenizer = character_tokenizer()
    model = tiny_model(family, max_position_embeddings=positions)
    return Model(model, tokenizer)


@pytest.fixture(scope="module")
def model():
    return tiny()


def spans_of(prompt, count):
    return [tuple(prompt.span(f"passage/{i}")) for i in range(1, count + 1)]


# ---- prompts


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_spans_hold_the_passages_and_the_query(model, layout):
    encoder = PieceEncoder(model.tokenizer)
    composer = PassageComposer(encoder, layout)
    shared, asked = composer.passages([Passage("red door"), Passage("the key", "Key.")]), composer.query("  where is\n it? ")
    whole = encoder.decode([*shared.ids, *asked.ids])
    assert encoder.decode(shared.ids[slice(*shared.span("passage/1"))]) == "Passage 1: red door"
    assert encoder.decode(shared.ids[slice(*shared.span("passage/2"))]) == "Passage 2: Key. the key"
    assert encoder.decode(asked.ids[slice(*asked.span("query"))]) == " where is it?"
    assert encoder.decode(asked.ids[slice(*asked.span("official"))]) == encoder.decode(asked.ids).removeprefix("\n")
    assert asked.span("official").stop == len(asked.ids)
    assert "Passage 1: red door\nPassage 2: Key. the key\n" in whole
    assert (
        len(shared.ids)
        <= sum(len(composer.passage(p, 2)) + 1 for p in (Passage("red door"), Passage("the key", "Key."))) + composer.overhead
    )


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("starts", [True, False])
def test_the_first_token_of_a_prompt_is_never_a_passages(layout, starts):
    tokenizer = character_tokenizer()
    if not starts:
        tokenizer.backend_tokenizer.post_processor = Sequence([])
    encoder = PieceEncoder(tokenizer)
    assert bool(encoder.bos) == starts
    made = PassageComposer(encoder, layout).passages([Passage("red door"), Passage("the key")])
    assert made.span("passage/1").start >= 1
    in_front = encoder.decode(made.ids[: made.span("passage/1").start])
    assert in_front.endswith("\n") == (layout == "instructed" or not starts)


def test_empty_texts_are_refused(model):
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    for call in (lambda: composer.passages([]), lambda: composer.passages([Passage(" ")]), lambda: composer.query(" \n")):
        with pytest.raises(PromptError, match=r"empty|no passages"):
            call()
    with pytest.raises(PromptError, match="unknown passage layout"):
        PassageComposer(PieceEncoder(model.tokenizer), "fancy")


# ---- scores


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "qwen3_next"])
def test_the_official_preset_is_the_released_procedure(family):
    model = tiny(family)
    layers = sorted(as_model(model.hf).heads.full_layers)
    heads = HeadSet.of([(layers[0], 3), (layers[-1], 0), (layers[-1], 6)], model.heads.shape)
    ranker = Ranker.official(model, heads)
    shared = ranker.composer.passages([p if isinstance(p, Passage) else Passage(p) for p in PASSAGES[::-1]])
    null = ranker.composer.query("N/A")
    index = ranker.index(PASSAGES)
    for query, found in zip(QUERIES, index.scores(QUERIES), strict=True):
        asked = ranker.composer.query(query)
        wanted = slow.official_scores(
            model.hf, shared.ids, spans_of(shared, 5), (asked.ids, (1, len(asked.ids))), (null.ids, (1, len(null.ids))), heads
        )
        np.testing.assert_allclose(found, wanted[::-1], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3_next", "gpt2"])
def test_many_queries_over_one_index_score_as_separate_runs(family):
    if family == "mistral":
        with pytest.raises(HeadwiseError, match="sliding window"):
            Ranker(tiny(family))
        return
    model = tiny(family) if family != "gpt2" else Model(tiny_model("gpt2"), character_tokenizer())
    ranker = Ranker(model)
    together = ranker.index(PASSAGES).scores(QUERIES)
    for query, scores in zip(QUERIES, together, strict=True):
        alone = {row["corpus_id"]: row["score"] for row in ranker.rank(query, PASSAGES)}
        np.testing.assert_allclose(scores, [alone[i] for i in range(len(PASSAGES))], atol=1e-5)


def test_results_have_the_shape_of_cross_encoders(model):
    ranker = Ranker(model)
    rows = ranker.rank(QUERIES[0], PASSAGES, top_k=3, return_documents=True)
    assert [set(row) for row in rows] == [{"corpus_id", "score", "text"}] * 3
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert all(row["text"] in (PASSAGES[row["corpus_id"]], getattr(PASSAGES[row["corpus_id"]], "text", "")) for row in rows)
    assert len(ranker.rank(QUERIES[0], PASSAGES)) == 5
    assert ranker.index(PASSAGES).scores([]).shape == (0, 5)


def test_options_change_what_they_say(model):
    def scores(**options):
        return Ranker(model, **options).index(PASSAGES).scores(QUERIES)

    plain = scores(calibrate=False)
    assert (plain > 0).all()
    assert (plain.sum(axis=1) < len(scorable_heads(model))).all()  # each head has one unit to give
    lengths = [
        stop - start
        for start, stop in spans_of(
            Ranker(model).composer.passages([p if isinstance(p, Passage) else Passage(p) for p in PASSAGES]), 5
        )
    ]
    np.testing.assert_allclose(scores(calibrate=False, normalize="mean") * lengths, plain, rtol=1e-5)
    assert not np.allclose(scores(), plain)
    assert not np.allclose(scores(span="query"), scores())
    assert not np.allclose(scores(order="reversed"), scores())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"span": "all"}, "unknown span"),
        ({"normalize": "max"}, "unknown normalize"),
        ({"order": "best"}, "unknown order"),
        ({"overflow": "cut"}, "unknown overflow"),
        ({"trim": -1.0}, "trim must be above 0"),
        ({"heads": HeadSet((), (4, 8))}, "no heads"),
        ({"heads": HeadSet.of([(0, 0)], (2, 2))}, "belong to a model of 2 layers"),
    ],
)
def test_wrong_options_are_refused(model, options, message):
    with pytest.raises(HeadwiseError, match=message):
        Ranker(model, **options)


def test_wrong_requests_are_refused(model):
    ranker = Ranker(model)
    with pytest.raises(HeadwiseError, match="top_k"):
        ranker.rank("red", PASSAGES, top_k=0)
    with pytest.raises(PromptError, match="passage 2 is empty"):
        ranker.rank("red", ["a", " "])
    with pytest.raises(PromptError, match=r"passage 1 has .* tokens, but only"):
        ranker.rank("red", ["word " * 400])
    with pytest.raises(PromptError, match="overflow 'tournament' or 'anchored'"):
        Ranker(model, overflow="refuse").rank("red", ["word " * 100] * 4)


# ---- windows


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(30, 200))
def test_windows_hold_everything_once_and_fit(costs, room):
    found = windows(range(len(costs)), costs, room)
    assert sorted(i for window in found for i in window) == list(range(len(costs)))
    assert all(sum(costs[i] for i in window) <= room for window in found)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 1000)), min_size=1, max_size=40), st.integers(60, 200), st.data())
def test_the_best_passage_wins_however_many_windows_there_are(passages, room, data):
    costs, quality = [c for c, _ in passages], np.array([float(q) + i / 100 for i, (_, q) in enumerate(passages)])
    for overflow in ("tournament", "anchored"):
        places = rank_in_windows(lambda chosen: quality[list(chosen)], costs, room, overflow)
        assert places.argmax() == quality.argmax()
        if overflow == "anchored":
            assert np.array_equal(np.argsort(places), np.argsort(quality))


def test_tournament_scores_are_places_even_if_windows_hold_one_passage_each():
    quality = np.array([3.0, 1.0, 2.0, 5.0])
    places = rank_in_windows(lambda chosen: quality[list(chosen)], [10] * 4, 10, "tournament")
    assert len(places) == 4
    with pytest.raises(PromptError, match="does not fit into a window beside the anchor"):
        rank_in_windows(lambda chosen: quality[list(chosen)], [10] * 4, 15, "anchored")


def test_more_passages_than_fit_are_all_ranked(model):
    many = [f"{word} {i}" for i, word in enumerate(["stone", "river", "bird", "door"] * 20)]
    for overflow in ("tournament", "anchored"):
        rows = Ranker(model, overflow=overflow).rank("river 5", many)
        assert sorted(row["corpus_id"] for row in rows) == list(range(80))


# ---- finding query heads

TREES = [
    f"{a} {b} {c}"
    for a, b, c in (("oak", "poplar", "snow"), ("fir", "larch", "rain"), ("elder", "hazel", "sun"), ("yew", "maple", "hail"))
]


def planted_examples():
    """The planted head finds the place behind the two words of the query."""
    queries = [text.rsplit(" ", 1)[0] for text in TREES]
    return [
        RankingExample(query, tuple(Passage(f"so {text} again") for text in TREES), frozenset({i}))
        for i, query in enumerate(queries)
    ]


def planted():
    tokenizer_texts = [f"Passage {i}: so {t} again. Question: Answer: N/A" for i, t in enumerate(TREES, 1)]
    model, tokenizer = planted_copier(texts=tokenizer_texts)
    return Model(model, tokenizer)


@pytest.fixture(scope="module")
def table():
    model = planted()
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    # The planted head answers to the query's own words.
    return measure_passages(model.hf, model, composer, planted_examples(), Scoring(span="query"))


@pytest.mark.parametrize("rule", RULES)
def test_the_planted_head_is_found_by_every_rule(table, rule):
    scores = query_scores(table, rule)
    assert scores.ranking()[0] == (1, 2)
    best, others = scores.values[1, 2], np.delete(scores.values.ravel(), 6)
    assert best > others.max() + (0.2 if rule != "mass" else 0.1)
    assert scores.runs.shape == (4, 2, 4)
    json.dumps(dict(scores.provenance))  # what a head file holds


def test_one_head_ranks_as_well_as_it_was_found(table):
    model = planted()
    for example in planted_examples():
        best = Ranker(model, query_scores(table).top(1)).rank(example.query, example.passages, top_k=1)
        assert {best[0]["corpus_id"]} == example.gold


def test_the_table_holds_the_masses_of_full_passes():
    model = tiny()
    example = RankingExample(QUERIES[0], tuple(p if isinstance(p, Passage) else Passage(p) for p in PASSAGES), frozenset({1}))
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    for scoring in (Scoring(span="query"), Scoring(), replace(OFFICIAL)):
        table = measure_passages(model.hf, model, composer, [example], scoring, seed=None)
        shared, asked, null = composer.passages(example.passages), composer.query(example.query), composer.query("N/A")
        full = slow.attention_to_prefix(model.hf, shared.ids, asked.ids, tuple(asked.span(scoring.span)))
        empty = slow.attention_to_prefix(model.hf, shared.ids, null.ids, tuple(null.span(scoring.span)))
        for layer, head in ((0, 0), (2, 5), (3, 7)):
            for place, (start, stop) in enumerate(spans_of(shared, 5)):
                assert table.raw[0, layer, head, place] == pytest.approx(float(full[layer][head][start:stop].sum()), abs=1e-5)
                change = full[layer][head] - empty[layer][head]
                wanted = slow.official_passage(change, start, stop) if scoring.strict else float(change[start:stop].sum())
                assert table.calibrated[0, layer, head, place] == pytest.approx(wanted, abs=1e-5)


def test_shuffled_passages_keep_their_names():
    model = planted()
    composer = PassageComposer(PieceEncoder(model.tokenizer))
    one, other = (measure_passages(model.hf, model, composer, planted_examples(), seed=seed) for seed in (1, 2))
    assert np.array_equal(one.gold, other.gold)
    assert query_scores(one, "ndcg").values[1, 2] == query_scores(other, "ndcg").values[1, 2] == 1


def test_sliding_layers_and_queries_without_gold_are_left_out_and_said_so():
    model = tiny("gemma3_text")
    examples = [
        RankingExample(q, tuple(map(Passage, ("red", "blue stone"))), frozenset(g)) for q, g in (("red", {0}), ("stone", set()))
    ]
    table = measure_passages(model.hf, model, PassageComposer(PieceEncoder(model.tokenizer)), examples)
    scores = query_scores(table, "mrr")
    assert np.isnan(scores.values[:2]).all()
    assert np.isfinite(scores.values[2:]).all()
    assert scores.provenance["layers_left_out"] == [0, 1]
    assert scores.provenance["queries_without_gold"] == 1
    with pytest.raises(HeadwiseError, match="none of 1 queries"):
        measure_passages(model.hf, model, PassageComposer(PieceEncoder(model.tokenizer)), examples[1:])


def test_halves_of_the_queries_agree_on_the_planted_head(table):
    runs = query_scores(table).runs
    assert split_half_top_overlap(runs, 1) == 1.0
    assert np.isnan(split_half_top_overlap(runs[:1], 1))


# ---- data


def test_examples_of_the_microworld_have_gold_passages_that_answer():
    for example in microworld_examples(5, "selection", n=6):
        assert len(example.passages) == 6
        assert len(example.gold) == 1
        assert not any(p.text.startswith(("Passage", "[")) for p in example.passages)


def test_examples_are_read_from_json_lines(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"query": "a?", "passages": ["x", {"title": "T", "text": "y"}], "gold": [1], "id": "q7"}\n\n')
    assert read_ranking_examples(path) == [RankingExample("a?", (Passage("x"), Passage("y", "T")), frozenset({1}), "q7")]


def test_the_layouts_of_hotpotqa_and_nq_are_read(tmp_path):
    told = {"question": "a?", "answer": "b"}
    rows = [told | {"_id": "1", "context": [["T", ["One.", " Two."]], ["U", [""]], ["V", ["b."]]], "supporting_facts": [["V", 0], ["T", 1]]}]
    columns = {"title": ["T", "U", "V"], "sentences": [["One.", " Two."], [""], ["b."]]}
    hub = told | {"id": "1", "context": columns, "supporting_facts": {"title": ["V", "T"], "sent_id": [0, 1]}}
    wanted = [RankingExample("a?", (Passage("One. Two.", "T"), Passage("b.", "V")), frozenset({0, 1}), "1", ("b",))]
    for name, text in (("list.json", json.dumps(rows)), ("hub.jsonl", json.dumps(hub))):
        (tmp_path / name).write_text(text)
        assert read_ranking_examples(tmp_path / name) == wanted
    (tmp_path / "nq.jsonl").write_text(json.dumps({"question": "a?", "answers": ["b", "c"], "ctxs": [{"title": "T", "text": "b", "isgold": True}]}))
    assert read_ranking_examples(tmp_path / "nq.jsonl") == [RankingExample("a?", (Passage("b", "T"),), frozenset({0}), "", ("b", "c"))]
    (tmp_path / "list.json").write_text(json.dumps([*rows, {"question": "a?"}]))
    with pytest.raises(PromptError, match="entry 2: not a row like the first one of the file: 'context' is missing"):
        read_ranking_examples(tmp_path / "list.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "holds no queries"),
        ("{", "line 1: no valid JSON"),
        ("[]", "holds no queries"),
        ("[1]", "entry 1: expected"),
        ('{"query": "a", "passages": ["x"], "gold": [0], "answers": [1]}', "answers must be a list of texts"),
        ('{"query": " ", "passages": ["x"], "gold": []}', "query is empty"),
        ('{"query": "a", "passages": "x", "gold": []}', "must be a list"),
        ('{"query": "a", "passages": [1], "gold": []}', "a passage is a text"),
        ('{"query": "a", "passages": ["x", " "], "gold": []}', "line 1: a passage is empty"),
        ('{"query": "a", "passages": ["x"], "gold": [true]}', "gold must be a list"),
        ('{"query": "a", "passages": ["x"], "gold": [1]}', "gold passage 1 does not exist"),
    ],
)
def test_broken_lines_are_refused_in_one_line(tmp_path, line, message):
    path = tmp_path / "q.jsonl"
    path.write_text(line)
    with pytest.raises(PromptError, match=message):
        read_ranking_examples(path)
    with pytest.raises(PromptError, match="cannot read queries"):
        read_ranking_examples(tmp_path / "none.jsonl")


def test_empty_passages_are_not_read_and_come_last_and_a_title_is_enough(model):
    ranker = Ranker(model, None)
    passages = {"a": Passage("Ada keeps the key."), "b": Passage(" "), "c": Passage("", "The tower"), "d": Passage("The road is long.")}
    run = rank_collection(ranker, passages, {"q": "Who keeps it?"}, {"q": list(passages)})
    without = {key: passages[key] for key in ("a", "c", "d")}
    alone = rank_collection(ranker, without, {"q": "Who keeps it?"}, {"q": list(without)})
    assert {key: run["q"][key] for key in without} == alone["q"]
    assert run["q"]["b"] < min(alone["q"].values())
    nothing = rank_collection(ranker, {"b": Passage("")}, {"q": "Who?"}, {"q": ["b"]})
    assert list(nothing["q"]) == ["b"]
    text = ranker.composer.builder.encoder.decode(ranker.composer.passages([passages["c"]]).ids)
    assert text.endswith("Passage 1: The tower")
