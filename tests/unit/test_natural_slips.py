"""What people write where heads, scores or a model are wanted: it works, or one clear sentence says what to write."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import headwise
from headwise.attention.columns import column_sums
from headwise.heads import HeadId, HeadScores, HeadSet, HeadwiseError
from headwise.heads.plain import LARGEST_SEED, checked_seed, plain
from headwise.heads.text import one_line, printable, shorten
from headwise.heads.types import MOST_HEADS
from headwise.methods.cafe.coarse_to_fine import CoarseToFine
from headwise.methods.influence.scorer import AttentionInfluence
from headwise.methods.query.ranker import Ranker
from headwise.methods.snapkv.press import SnapKV
from headwise.models.export import export_ablated
from headwise.models.model import Model
from headwise.models.weights import silence_in_weights
from headwise.report.console import print_all
from headwise.stats.controls import layer_matched_random
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

NAN = float("nan")
SHAPE = (4, 8)
HEADS = HeadSet.of([(1, 2), (0, 1), (3, 7)], SHAPE, "by hand")


def scores(rows=((0.1, NAN, 0.3), (0.4, 0.5, -2.0)), **options):
    return HeadScores(np.asarray(rows), "copy", **options)


@pytest.fixture(scope="module")
def hf():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def model(hf):
    return Model(hf, character_tokenizer())


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(0))


# ---- sets and scores


def test_a_set_is_indexed_like_a_list():
    assert (HEADS[0], HEADS[-1], HEADS[np.int64(1)]) == (HeadId(1, 2), HeadId(3, 7), HeadId(0, 1))
    assert HEADS[:2].heads == ((1, 2), (0, 1))
    assert HEADS[:2].shape == SHAPE


@pytest.mark.parametrize("place", [3, -4, "L1H2", 1.0, None])
def test_a_place_that_is_none_is_said_so(place):
    with pytest.raises(HeadwiseError, match=r"no head at place .*; the set holds 3, the first is heads\[0\]"):
        HEADS[place]


def test_sets_are_joined_and_left_out_in_order():
    other = HeadSet.of([(2, 2), (0, 1)], SHAPE, "top 2")
    assert (HEADS | other).heads == ((1, 2), (0, 1), (3, 7), (2, 2))
    assert (HEADS - other).heads == ((1, 2), (3, 7))
    assert (HEADS | ["L2H2"]).heads == (HEADS | other).heads
    assert (HEADS - [(0, 1)]).heads == (HEADS - other).heads
    assert (HEADS | other).chosen_by == "by hand and top 2"
    assert (HEADS - other).chosen_by == "by hand without top 2"
    assert (HEADS - HEADS).heads == ()
    for change in (lambda a, b: a | b, lambda a, b: a - b):
        with pytest.raises(HeadwiseError, match="belong to a model of 2 layers x 3 heads, but the first set has 4 x 8"):
            change(HEADS, HeadSet((), (2, 3)))


def test_membership_in_every_spelling():
    for head in ("L1H2", "1-2", (1, 2), [1, 2], HeadId(1, 2), (np.int64(1), np.int64(2))):
        assert head in HEADS
    assert "L2H1" not in HEADS
    for wrong in ("banana", 7, None, (1, 2, 3)):
        with pytest.raises(HeadwiseError, match="is not a head; write"):
            _ = wrong in HEADS


def test_scores_are_read_head_by_head():
    table = scores()
    assert (table[1, 2], table["L1H2"], table[HeadId(1, 0)]) == (-2.0, -2.0, 0.4)
    assert np.isnan(table[0, 1])
    assert type(table[0, 0]) is float
    for outside in ((2, 0), "L0H3", (-1, 0)):
        with pytest.raises(HeadwiseError, match="lies outside a model of 2 layers x 3 heads"):
            table[outside]
    for wrong in (0, slice(1), None):
        with pytest.raises(HeadwiseError, match=r"scores take one head, scores\[5, 6\] or scores\['L5H6'\]"):
            table[wrong]


@pytest.mark.parametrize(
    "heads", [[(1, 2), (0, 1)], ["L1H2", "0-1"], ((1, 2), "L0H1"), [[1, 2], HeadId(0, 1)], np.array([[1, 2], [0, 1]])]
)
def test_lists_of_heads_are_heads(heads):
    assert HeadSet.of(heads, SHAPE).heads == ((1, 2), (0, 1))
    assert HeadSet.of(iter(heads), SHAPE) == HeadSet.of(heads, SHAPE)
    assert HeadSet.of(HEADS, SHAPE) is HEADS


WRONG_HEADS = {
    "a text": ("L1H2", "give a list such as ['L5H6'], or load_heads(FILE).top(8)"),
    "a path": (Path("heads.json"), "'heads.json' was given; give a list"),
    "bytes": (b"L1H2", "give a list such as"),
    "scores": (scores(), "scores were given; choose some of them, for example scores.top(8)"),
    "one head": (HeadId(1, 2), "put it into a list: [(1, 2)]"),
    "a pair": ((1, 2), "put it into a list: [(1, 2)]"),
    "a number": (5, "heads are wanted and 5 was given"),
    "nothing": (None, "heads are wanted and None was given"),
    "an object": ({"L1H2": 1}, "give a HeadSet or a list"),
    "a float": ([(1.0, 2)], "(1.0, 2) is not a head; write (17, 24) or 'L17H24'"),
    "true": ([(True, 2)], "is not a head"),
    "a triple": ([(1, 2, 3)], "is not a head"),
    "words": (["first"], "'first' is not a head; write it as L17H24"),
    "digits without end": (["L" + "9" * 5000 + "H1"], "is not a head"),
    "outside": ([(4, 0)], "head L4H0 lies outside a model of 4 layers x 8 heads"),
    "twice": ([(1, 2), "L1H2"], "names a head twice"),
    "another model": (HeadSet((), (2, 3)), "belong to a model of 2 "),
}


@pytest.mark.parametrize("case", WRONG_HEADS)
def test_other_things_are_one_clear_sentence(case):
    given, message = WRONG_HEADS[case]
    with pytest.raises(HeadwiseError, match=re.escape(message)) as error:
        HeadSet.of(given, SHAPE)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("k", [1.5, "3", True, None, 0, 6])
def test_a_count_that_is_none_is_refused(k):
    with pytest.raises(HeadwiseError, match="asked for, but the file scores 5 heads; choose 1 to 5"):
        scores().top(k)


@pytest.mark.parametrize("seed", [-1, 1.5, True, None, LARGEST_SEED + 1, "7"])
def test_seeds_out_of_range_are_one_line(seed):
    with pytest.raises(HeadwiseError, match="seed must be a whole number from 0 to 9223372036854775807"):
        checked_seed(seed)
    with pytest.raises(HeadwiseError, match="seed must be"):
        scores().bottom(2, seed)
    with pytest.raises(HeadwiseError, match="seed must be"):
        tiny_model("llama", seed=seed)
    with pytest.raises(HeadwiseError, match="seed must be"):
        planted_task(seed)


def test_a_table_that_no_model_has_is_refused_before_it_is_made():
    with pytest.raises(HeadwiseError, match=f"no model has 1000000 layers x 1000000 heads \\(at most {MOST_HEADS}"):
        HeadSet((), (10**6, 10**6))
    wide = np.broadcast_to(np.float64(0), (2, MOST_HEADS))
    with pytest.raises(HeadwiseError, match="no model has"):
        scores(wide)


def test_shapes_of_other_tables_name_the_way_out():
    with pytest.raises(HeadwiseError, match=r"column per KV head: headwise convert FILE NEW\.json --group 4$"):
        HeadSet.of([(0, 1)], (4, 2)).check_fits((4, 8), "m")
    with pytest.raises(HeadwiseError, match=r"does not name all heads: headwise convert FILE NEW\.json --shape 4x8$"):
        HeadSet.of([(0, 1)], (3, 5)).check_fits((4, 8), "m")


# ---- tables


def test_tables_are_numbers_of_the_same_heads():
    given = {"lift": np.ones((2, 6), np.float32), "gates": [[1, 2, 3], [4, 5, NAN]], "order": [1, 0]}
    table = HeadScores(np.zeros((2, 6)), "gate", tables=given)
    assert {name: rows.shape for name, rows in table.tables.items()} == {"lift": (2, 6), "gates": (2, 3), "order": (2,)}
    assert all(rows.dtype == np.float64 for rows in table.tables.values())
    for wrong in (np.zeros((2, 4)), np.zeros((3, 6)), np.zeros(3), np.zeros((2, 6, 1)), np.zeros((2, 0)), 3.0):
        with pytest.raises(HeadwiseError, match=r"must be \[layer\], \[layer, head\] or \[layer, KV head\]"):
            HeadScores(np.zeros((2, 6)), "gate", tables={"t": wrong})
    with pytest.raises(HeadwiseError, match="'t' holds an infinite number"):
        HeadScores(np.zeros((2, 6)), "gate", tables={"t": np.full(2, np.inf)})
    with pytest.raises(HeadwiseError, match="needs a name"):
        HeadScores(np.zeros((2, 6)), "gate", tables={"": np.zeros(2)})


def test_scores_are_equal_if_everything_is():
    made = {
        "runs": np.zeros((1, 2, 3), np.float32),
        "run_info": ({"n": 1},),
        "provenance": {"a": (1, 2)},
        "tables": {"t": [1, NAN]},
    }
    assert scores(**made) == scores(**made | {"provenance": {"a": [1, 2]}})
    changes = (
        {"runs": np.ones((1, 2, 3), np.float32)},
        {"runs": None, "run_info": ()},
        {"run_info": ({"n": 2},)},
        {"provenance": {}},
        {"tables": {"t": [1, 2]}},
        {"tables": {"u": [1, NAN]}},
        {"score_version": 2},
    )
    assert all(scores(**made) != scores(**made | change) for change in changes)
    assert scores() != scores(np.zeros((2, 3)))
    assert scores() != HEADS


# ---- models


def logits(hf, ids):
    with torch.no_grad():
        return hf(input_ids=ids, use_cache=False).logits


def test_blocks_take_a_model_and_a_list_of_heads(hf, model, ids):
    heads = HeadSet.of([(1, 2), (3, 7)], model.heads.shape)
    with headwise.ablate(hf, heads):
        expected = logits(hf, ids)
    assert not torch.equal(expected, logits(hf, ids))
    for given in ([(1, 2), (3, 7)], ["L1H2", "3-7"], heads):
        for subject in (hf, model):
            with headwise.ablate(subject, given):
                assert torch.equal(logits(hf, ids), expected)
    with headwise.ablate(model, []):
        assert torch.equal(logits(hf, ids), logits(hf, ids))
    with headwise.ablate(model, [HeadSet((), model.heads.shape), heads]):  # one per row, as ever
        assert torch.equal(logits(hf, ids)[1], expected[1])


def test_observe_steer_means_and_compress_take_a_model(hf, model, ids):
    with headwise.observe(model, rows=1) as a, headwise.observe(hf, rows=1) as b:
        logits(hf, ids)
    assert torch.equal(a.lse, b.lse)
    with headwise.steer(model, ["L1H2"], [(0, 5)], 3.0):
        steered = logits(hf, ids)
    with headwise.steer(hf, HeadSet.of([(1, 2)], model.heads.shape), [(0, 5)], 3.0):
        assert torch.equal(logits(hf, ids), steered)
    assert torch.equal(headwise.head_means(model, [ids]), headwise.head_means(hf, [ids]))
    with column_sums(model, ["L1H2"], 5, torch.ones(2, 1)) as seen:
        logits(hf, ids)
    assert list(seen.by_layer) == [1]
    with headwise.compress(model, SnapKV(budget=10, window=4)) as cache:
        cache.prefill(ids)
        assert cache.nbytes > 0


@pytest.mark.parametrize("block", [headwise.observe, headwise.head_means, headwise.compress, headwise.ablate])
@pytest.mark.parametrize("given", ["smollm2", None, 3, HEADS])
def test_what_is_no_model_is_said_so(block, given):
    more = {headwise.head_means: ([],), headwise.compress: (SnapKV(budget=16),), headwise.ablate: ([(0, 0)],)}.get(block, ())
    with pytest.raises(HeadwiseError, match=r"a headwise\.Model or a model of transformers is needed; got"):
        block(given, *more).__enter__()


@pytest.mark.parametrize("case", [case for case in WRONG_HEADS if case != "nothing"])
def test_wrong_heads_are_refused_wherever_heads_are_taken(case, model, tmp_path):
    given, message = WRONG_HEADS[case]
    takers = (
        lambda: headwise.ablate(model, given).__enter__(),
        lambda: headwise.steer(model, given, [(0, 5)], 1.0).__enter__(),
        lambda: Ranker(model, given),
        lambda: CoarseToFine(model, given, given),
        lambda: AttentionInfluence(model, given),
        lambda: layer_matched_random(given, np.ones(SHAPE, bool), 0),
        lambda: silence_in_weights(model.hf, given, "zero"),
        lambda: export_ablated(model, given, "zero", tmp_path / "new"),
    )
    for take in takers:
        with pytest.raises(HeadwiseError, match=re.escape(message)):
            take()


def test_a_ranker_takes_a_list_and_needs_a_tokenizer(hf, model):
    passages = ["red door", "the key is blue"]
    assert Ranker(model, ["L1H2"]).rank("key", passages) == Ranker(model, HeadSet.of([(1, 2)], model.heads.shape)).rank(
        "key", passages
    )
    for given in (hf, Model(hf)):
        with pytest.raises(HeadwiseError, match=r"ranking passages needs a tokenizer; give headwise.load\(NAME\)"):
            Ranker(given, [(1, 2)])
    with pytest.raises(HeadwiseError, match=r"a headwise\.Model or a model of transformers is needed"):
        Ranker("smollm2", [(1, 2)])


def test_a_list_has_random_controls():
    drawn = layer_matched_random(["L1H2", (3, 7)], np.ones(SHAPE, bool), 0)
    assert [head.layer for head in drawn] == [1, 3]


# ---- generate


@pytest.fixture(scope="module")
def copier():
    return Model(*planted_copier())


def test_generate_continues_greedily_with_and_without_a_cache(copier):
    needle = planted_task().needles[0]
    text = f"{planted_task().texts[0][:600]} {needle['needle']} the river was slow. {needle['answer_prefix']}"
    said = copier.generate(text, max_new_tokens=8)
    assert said.startswith(f" {needle['answer']}.")
    assert len(copier.tokenizer.encode(said, add_special_tokens=False)) == 8
    with headwise.compress(copier, SnapKV(budget=100)) as cache:
        assert copier.generate(text, max_new_tokens=8, cache=cache) == said
        assert 0 < cache.nbytes < 8 * 200 * 2 * 4 * 2 * 128
    with headwise.ablate(copier, ["L1H2"]):
        assert needle["answer"] not in copier.generate(text, max_new_tokens=8)


def test_generate_stops_at_the_end_of_text(copier):
    ended = copier.hf.generation_config.eos_token_id
    newline = copier.tokenizer.get_vocab()["\n"]
    copier.hf.generation_config.eos_token_id = newline
    try:
        assert copier.generate("the river was slow") == "\n"  # the planted model says a line break at once
    finally:
        copier.hf.generation_config.eos_token_id = ended


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": ""}, "the prompt must be a text that is not empty"),
        ({"text": 3}, "the prompt must be a text"),
        ({"text": "a", "max_new_tokens": 0}, "max_new_tokens must be at least 1; got 0"),
        ({"text": "a", "max_new_tokens": 1.5}, "max_new_tokens must be at least 1"),
        ({"text": "the river " * 700}, "has 1024 positions; shorten it"),
    ],
)
def test_generate_refuses(copier, given, message):
    with pytest.raises(HeadwiseError, match=message):
        copier.generate(**given)
    with pytest.raises(HeadwiseError, match="generating text needs a tokenizer"):
        Model(copier.hf).generate("a")


def test_generate_refuses_logits_that_are_no_numbers():
    model = Model(*planted_copier())
    with torch.no_grad():
        model.hf.get_output_embeddings().weight[5, 0] = torch.nan
    with pytest.raises(HeadwiseError, match=r"logits are not finite \(NaN or infinity\)"):
        model.generate("the river was slow")


# ---- what is printed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text\twith tab\nand line", "plain text\twith tab\nand line"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07name", "name"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bcreset \x1b(Bset", "reset set"),
        ("\x9b2Jclear\x85", "clear"),
        ("bell\x07 back\x08 del\x7f\r", "bell back del"),
        ("turned \u202eretaw\u202c", "turned retaw"),
        ("half \ud800 pair", "half \\ud800 pair"),
        ("unfinished \x1b]0;title; give another", "unfinished 0;title; give another"),
        ("é 漢字 🦊", "é 漢字 🦊"),
    ],
)
def test_escape_sequences_are_never_printed(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_absurd_lengths_lose_their_middle():
    assert shorten("a" * 200, 30) == "a" * 19 + "…" + "a" * 10
    word = one_line("no such file:\n" + "x" * 100_000 + " \x1b[1m; give another")
    assert word.startswith("no such file: xxx")
    assert word.endswith("xxx ; give another")
    assert len(word) < 400
    assert len(one_line("word " * 100_000)) <= 5_000


def test_tables_print_names_without_their_escape_sequences(capsys):
    from rich.table import Table
    from rich.text import Text

    table = Table("a\x1b[31mb", "c", title="e\x1b[2Jf")
    table.add_row("[red]g\x1b[0m", Text("c\x1b]0;title\x1b\\d"))
    print_all(table, "h\x9b1mi", "漢" * 400)
    shown = capsys.readouterr().out
    assert not set("\x1b\x07\x9b") & set(shown)
    assert all(part in shown for part in ("ab", "cd", "ef", "[red]g", "漢" * 400, "hi"))  # nothing is shortened in results


def test_plain_data_has_no_arrays_and_no_nan():
    assert plain({"a": np.array([1.0, NAN]), 3: (np.int64(2), float("inf"))}) == {"a": [1.0, None], "3": [2, None]}
