"""Function vectors, patches and forced copying: planted heads, padding, properties, what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.attention import Force, HeadVectors, force_copy, insert, patch, record
from headwise.attention.copying import merged, mix, two_step
from headwise.caches.kept_cache import compress
from headwise.heads import HeadSet, HeadwiseError
from headwise.methods.snapkv.press import SnapKV
from headwise.models.forward import token_tensor
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.prompt import Piece, PromptBuilder, Turn
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache
from tests.reference import interventions as slow

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
HEADS = [(1, 2), (2, 5), (0, 1), (3, 3)]
PLANTED = [(1, 2)]


@pytest.fixture(scope="module")
def tiny():
    made = tiny_model("llama")
    made.generation_config.eos_token_id, made.generation_config.pad_token_id = None, 1
    return made


@pytest.fixture(scope="module")
def planted():
    return Model(*planted_copier())


def text(tokens, seed=0, rows=1):
    return torch.randint(3, 96, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def vectors(seed=0, heads=HEADS, size=16):
    return HeadVectors(HeadSet.of(heads, (4, 8)), torch.randn(len(heads), size, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def logits(model, ids, **options):
    return model(ids, **options).logits


# ---- planted heads


def asked(planted, number, needles=(0, 1)):
    """A prompt that holds some needles and ends with the beginning of needle `number`; spans: the words of each answer."""
    task, pieces = planted_task(), []
    words = task.texts[0].split()
    for i, needle in enumerate(needles):
        own = task.needles[needle]
        pieces.append(Piece(" " * bool(i) + " ".join([*words[20 * i : 20 * i + 20], own["answer_prefix"]])))
        pieces += [Piece(" " + word, (f"needle{needle}/{place}",)) for place, word in enumerate(own["answer"].split())]
        pieces.append(Piece("."))
    pieces.append(Piece(" " + task.needles[number]["answer_prefix"]))
    return PromptBuilder(PieceEncoder(planted.tokenizer)).build([Turn("user", tuple(pieces))])


def says(planted, prompt, tokens=3):
    ids = token_tensor(planted.hf, prompt.ids)
    with torch.no_grad():
        found = planted.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return planted.tokenizer.decode(found[0, ids.shape[1] :]).split()


@pytest.fixture(scope="module")
def answers():
    return [needle["answer"].split() for needle in planted_task().needles]


def test_a_vector_flips_the_answer(planted, answers):
    """The planted head's output behind one question, put in behind another one, at every token of the answer."""
    assert says(planted, asked(planted, 0)) == answers[0]
    with record(planted, PLANTED) as seen, torch.no_grad():
        planted.hf(token_tensor(planted.hf, asked(planted, 1).ids), use_cache=False)
    found = HeadVectors(HeadSet.of(PLANTED, (2, 4)), seen.outputs[0, 0])
    for mode, scale in (("replace", 1.0), ("add", 4.0)):
        with insert(planted, found, mode, scale):
            assert says(planted, asked(planted, 0)) == [answers[1][0]] * 3
    others = HeadVectors(HeadSet.of([(1, 1)], (2, 4)), seen.outputs[0, 0])
    with insert(planted, others, "replace", 1.0), record(planted, PLANTED) as untouched:
        says(planted, asked(planted, 0), 1)
    with record(planted, PLANTED) as plain:
        says(planted, asked(planted, 0), 1)
    torch.testing.assert_close(untouched.outputs, plain.outputs, atol=1e-6, rtol=0)  # no head below it was changed


@pytest.mark.parametrize("given", [{"how": "two_step", "beta": 3.0}, {"how": "mix", "weight": 1.0}])
def test_a_planted_head_copies_what_it_is_told_to(planted, answers, given):
    prompt = asked(planted, 0)
    span = prompt.span("needle1/1")
    with force_copy(planted, PLANTED, [span], **given):
        assert says(planted, prompt) == [answers[1][1]] * 3
    with force_copy(planted, [(1, 0)], [span], **given):  # another head copies nothing
        assert says(planted, prompt)[0] != answers[1][1]
    assert says(planted, prompt) == answers[0]


def test_a_clean_output_suffices_in_a_corrupted_run(planted, answers):
    """The corrupted prompt lacks the needle that it asks for."""
    clean, corrupted = asked(planted, 0), asked(planted, 0, needles=(1, 2))
    assert says(planted, corrupted, 1) != answers[0][:1]
    with record(planted, PLANTED) as seen, torch.no_grad():
        planted.hf(token_tensor(planted.hf, clean.ids))
    with patch(planted, PLANTED, seen.outputs):
        assert says(planted, corrupted, 1) == answers[0][:1]
    with record(planted, [(1, 0)]) as seen, torch.no_grad():
        planted.hf(token_tensor(planted.hf, clean.ids))
    with patch(planted, [(1, 0)], seen.outputs):
        assert says(planted, corrupted, 1) != answers[0][:1]


# ---- padding, batches, caches


def padded_batch(side):
    """Ids and mask [2, 20]: rows of 13 and 20 real tokens."""
    ids, mask = text(20, rows=2), torch.ones(2, 20, dtype=torch.int64)
    real = text(13, 5)[0]
    if side == "left":
        ids[0, 7:], mask[0, :7] = real, 0
        ids[0, :7] = 1
    else:
        ids[0, :13], mask[0, 13:] = real, 0
        ids[0, 13:] = 1
    return ids, mask


def each_row(side):
    """Blocks for the batch, and for each of its rows alone."""
    shift = 7 if side == "left" else 0
    sets = [vectors(1), vectors(2)]
    outputs = torch.randn(2, 1, 4, 16, generator=torch.Generator().manual_seed(4))
    return {
        "insert": (
            lambda model: insert(model, sets, "add", [0.5, 2.0]),
            lambda model, row: insert(model, sets[row], "add", [0.5, 2.0][row]),
        ),
        "copy": (
            lambda model: force_copy(model, HEADS, [[(shift + 2, shift + 5)], [(4, 6), (9, 10)]], "mix"),
            lambda model, row: force_copy(model, HEADS, [[(2, 5)], [(4, 6), (9, 10)]][row], "mix"),
        ),
        "patch": (
            lambda model: patch(model, HEADS, outputs),
            lambda model, row: patch(model, HEADS, outputs[row : row + 1]),
        ),
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", ["insert", "copy", "patch"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cache", [True, False])
def test_rows_of_a_padded_batch_are_rows_alone(tiny, kind, side, cache):
    ids, mask = padded_batch(side)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    together, alone = each_row(side)[kind]
    with together(tiny):
        found = tiny(ids, attention_mask=mask, position_ids=places, use_cache=cache).logits
    for row in range(2):
        with alone(tiny, row):
            own = tiny(ids[row : row + 1, mask[row].bool()], use_cache=cache).logits[0]
        torch.testing.assert_close(found[row, mask[row].bool()], own, **CLOSE)
        assert (own - tiny(ids[row : row + 1, mask[row].bool()]).logits[0]).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", ["insert", "copy", "patch"])
@pytest.mark.parametrize("cache", [True, False])
def test_padded_generation_is_that_of_each_row(tiny, kind, cache):
    ids, mask = padded_batch("left")
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": cache}
    together, alone = each_row("left")[kind]
    with together(tiny):
        found = tiny.generate(ids, attention_mask=mask, **options)
    for row in range(2):
        own = ids[row : row + 1, mask[row].bool()]
        with alone(tiny, row):
            assert torch.equal(found[row, 20:], tiny.generate(own, attention_mask=torch.ones_like(own), **options)[0, -6:])


@torch.no_grad()
def test_a_compressed_cache_holds_the_forced_positions_or_is_refused(tiny):
    ids = text(40)
    with compress(tiny, SnapKV(budget=100)) as cache, force_copy(tiny, HEADS, [(20, 23)], answer_from=39):
        cache.prefill(ids)
        whole = tiny(ids[:, -1:], **with_cache(cache)).logits
    with force_copy(tiny, HEADS, [(20, 23)], answer_from=39):
        wanted = logits(tiny, torch.cat([ids, ids[:, -1:]], dim=1))
    torch.testing.assert_close(whole[:, -1], wanted[:, -1], **CLOSE)
    with compress(tiny, SnapKV(budget=12)) as cache, force_copy(tiny, HEADS, [(5, 25)], answer_from=39):
        cache.prefill(ids)  # full attention until its end
        with pytest.raises(HeadwiseError, match="layer 0: the compressed cache has dropped positions that copying is forced to"):
            tiny(ids[:, -1:], **with_cache(cache))


@torch.no_grad()
def test_vectors_are_written_over_a_compressed_cache(tiny):
    ids = text(40)
    with insert(tiny, vectors(), "add"), compress(tiny, SnapKV(budget=100)) as cache:
        expected = tiny(ids, use_cache=False).logits[:, -1]
        torch.testing.assert_close(cache.prefill(ids, chunk=13), expected, **CLOSE)


# ---- properties


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.integers(2, 20), st.floats(-4, 4))
def test_what_changes_nothing_changes_not_a_bit(tiny, seed, tokens, spread):
    model, ids = tiny, text(tokens, seed)
    before = attached_logits(model, ids)
    found = HeadVectors(HeadSet.of(HEADS, (4, 8)), spread * vectors(seed).values)
    idle = [
        insert(model, found, "add", 0.0),
        force_copy(model, HEADS, [(0, 1)], "mix", weight=0.0),
        force_copy(model, HEADS, [(0, 1)], "two_step", beta=0.0, factor=1.0),
    ]
    for block in idle:
        with block:
            assert torch.equal(logits(model, ids), before)


def attached_logits(model, ids):
    with record(model, HEADS):  # the same attention function, unchanged
        return logits(model, ids)


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.integers(2, 20))
def test_a_heads_own_output_changes_nothing(tiny, seed, tokens):
    model, ids = tiny, text(tokens, seed)
    with record(model, HEADS) as seen:
        before = logits(model, ids)
    own = HeadVectors(HeadSet.of(HEADS, (4, 8)), seen.outputs[0, 0])
    with insert(model, own):
        torch.testing.assert_close(logits(model, ids), before, atol=1e-6, rtol=0)
    with record(model, HEADS, list(range(tokens))) as seen:
        logits(model, ids)
    with patch(model, HEADS, seen.outputs, list(range(tokens))):
        torch.testing.assert_close(logits(model, ids), before, atol=1e-6, rtol=0)


@settings(max_examples=100)
@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=12), st.sets(st.integers(0, 11)), st.floats(0, 2), st.floats(1, 4), st.floats(0, 1),
    st.floats(0.1, 4), st.integers(0, 11),
)  # fmt: skip
def test_both_ways_equal_loops_over_positions(scores, needle, beta, factor, weight, temperature, unseen):
    """And weights stay weights: they sum to 1, and what may not be seen has none."""
    if len(scores) > 1 and unseen < len(scores):
        scores[unseen] = -math.inf
    needle = sorted(j for j in needle if j < len(scores))
    row, forced = torch.tensor(scores, dtype=torch.float64), torch.zeros(len(scores), dtype=torch.bool)
    forced[needle] = True
    raised = two_step(row, forced, beta, factor)
    assert raised.tolist() == pytest.approx(slow.two_step_scores(scores, needle, beta, factor))
    plain = row.softmax(dim=-1)
    mixed = mix(plain, row, forced, weight, temperature)
    assert mixed.tolist() == pytest.approx(slow.mixed_weights(plain.tolist(), scores, needle, weight, temperature))
    for weights in (raised.softmax(dim=-1), mixed):
        assert float(weights.sum()) == pytest.approx(1)
        assert not weights[row.isneginf()].any()
    if needle and max(scores) > 0 and any(scores[j] > -math.inf for j in needle):
        assert float(raised.softmax(dim=-1)[needle].sum()) >= float(plain[needle].sum()) - 1e-12


def test_spans_are_merged():
    assert merged([(5, 7), (1, 3), (2, 4), (7, 8)]) == [(1, 4), (5, 8)]


# ---- what is refused


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (lambda m: insert(m, vectors(), "swap"), "unknown mode 'swap' of vectors; use replace or add"),
        (lambda m: insert(m, vectors(), scale=math.nan), "the scale must be a finite number; got nan"),
        (lambda m: insert(m, vectors(), scale="2"), "the scale must be a finite number; got '2'"),
        (lambda m: insert(m, vectors(), scale=None), "the scale must be a finite number; got None"),
        (lambda m: insert(m, vectors(), scale=10**400), "the scale must be a finite number"),
        (lambda m: insert(m, None), "vectors are wanted"),
        (lambda m: insert(m, vectors(), answer_from=1.5), "answer_from is the position .* from 0 on; got 1.5"),
        (lambda m: insert(m, vectors(), answer_from=-1), "answer_from is the position .* from 0 on; got -1"),
        (lambda m: insert(m, vectors(), answer_from=True), "answer_from is the position .* from 0 on; got True"),
        (lambda m: record(m, HEADS, answer_from="3"), "answer_from is the position .* from 0 on; got '3'"),
        (lambda m: patch(m, HEADS, torch.ones(1, 1, 4, 16), answer_from="3"), "answer_from is the position"),
        (lambda m: force_copy(m, HEADS, [(0, 1)], answer_from=2.0), "answer_from is the position"),
        (lambda m: insert(m, vectors(size=8)), "vectors of 8 numbers for .*, whose heads give 16"),
        (lambda m: insert(m, []), "vectors are wanted"),
        (lambda m: insert(m, [vectors(), vectors()], scale=[1.0]), "1 scales for 2 sets of vectors"),
        (lambda m: insert(m, HeadVectors(HeadSet.of([(1, 1)], (2, 4)), torch.ones(1, 16))), "belong to a model of 2 layers x 4 heads"),
        (lambda m: insert(m, vectors(), scale=3e38), "do not fit into float32; lower the scale"),
        (lambda m: HeadVectors(HeadSet.of(HEADS, (4, 8)), torch.ones(3, 16)), r"4 heads need vectors \[4, head size\]"),
        (lambda m: HeadVectors(HeadSet.of(HEADS, (4, 8)), torch.full((4, 16), math.inf)), "NaN or infinite"),
        (lambda m: HeadVectors(HeadSet.of(HEADS, (4, 8)), "vectors"), "must be a tensor of numbers"),
        (lambda m: HeadVectors(HeadSet.of(HEADS, (4, 8)), [[1], [1, 2]]), "must be a tensor of numbers"),
        (lambda m: HeadVectors(HeadSet.of(HEADS, (4, 8)), torch.ones(4, 16, dtype=torch.complex64)), "must be real numbers"),
        (lambda m: HeadVectors(HeadSet((), (4, 8)), torch.ones(0, 16)), "choose at least one"),
        (lambda m: vectors().of([(0, 0)]), "there is no vector of head L0H0"),
        (lambda m: record(m, []), "no head was chosen"),
        (lambda m: record(m, HEADS, [-1]), "positions must be whole numbers from 0 on"),
        (lambda m: record(m, HEADS, [0.5]), "positions must be whole numbers"),
        (lambda m: patch(m, HEADS, torch.ones(1, 1, 3, 16)), r"outputs must be \[rows, 1, 4, 16\]"),
        (lambda m: record(m, HEADS, torch.ones(1, dtype=torch.complex64)), "positions must be whole numbers"),
        (lambda m: patch(m, HEADS, torch.full((1, 1, 4, 16), math.nan)), "finite in the model's dtype"),
        (lambda m: patch(m, HEADS, torch.full((1, 1, 4, 16), 1e300, dtype=torch.float64)), "finite in the model's dtype"),
        (lambda m: patch(m, HEADS, torch.ones(1, 1, 4, 16, dtype=torch.int64)), "must be floating-point numbers"),
        (lambda m: force_copy(m, HEADS, [(0, 1)], "push"), "unknown way 'push' to force copying; use two_step or mix"),
        (lambda m: force_copy(m, HEADS, []), "at least one span"),
        (lambda m: force_copy(m, HEADS, [[(0, 1)], []]), "at least one span .* in every row"),
        (lambda m: force_copy(m, HEADS, [(3, 3)]), r"span \[3, 3\) holds no position"),
        (lambda m: force_copy(m, HEADS, [1, 2]), "spans must be pairs of positions"),
        (lambda m: force_copy(m, HEADS, [(0, 1)], "mix", weight=1.5), r"weight must lie in \[0, 1\]; got 1.5"),
        (lambda m: force_copy(m, HEADS, [(0, 1)], factor=0.5), "factor at least 1"),
        (lambda m: force_copy(m, HEADS, [(0, 1)], "mix", temperature=0), "temperature must be above 0"),
        (lambda m: force_copy(m, HEADS, [(0, 1)], beta=math.inf), "beta must be a finite number"),
        (lambda m: force_copy(m, HEADS, [(0, 1)], beta="1"), "beta must be a finite number; got '1'"),
        (lambda m: force_copy(m, HEADS, [(0, 1)], factor=1e300), r"factor must be at most 1e\+06; got 1e\+300"),
        (lambda m: force_copy(m, HEADS, [(0, 1)], "mix", temperature=1e39), r"temperature must be at most 1e\+06"),
        (lambda m: force_copy(m, HEADS, [(0, 2.5)]), "spans must be pairs of positions"),
        (lambda m: force_copy(m, [], [(0, 1)]), "no head was chosen"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused_in_one_line(tiny, block, message):
    with pytest.raises(HeadwiseError, match=message) as caught:
        block(tiny).__enter__()
    assert "\n" not in str(caught.value)
    assert tiny.config._attn_implementation != "headwise"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (lambda m: insert(m, [vectors()] * 3), "3 sets of vectors for a batch of 2 rows"),
        (lambda m: patch(m, HEADS, torch.ones(3, 1, 4, 16)), "outputs of 3 rows for a batch of 2 rows"),
        (lambda m: patch(m, HEADS, torch.ones(1, 1, 4, 16), [[1], [2], [3]]), "positions of 3 rows for a batch of 2 rows"),
        (lambda m: record(m, HEADS, [25]), "a position to record lies outside of the pass, which has positions 0 to 19"),
        (lambda m: force_copy(m, HEADS, [(18, 25)]), r"span \[18, 25\) reaches behind the text of 20 tokens"),
        (lambda m: force_copy(m, HEADS, [[(1, 2)]] * 3), "spans of 3 rows for a batch of 2 rows"),
        (lambda m: force_copy(m, HEADS, [(3, 9)]), r"span \[3, 9\) of row 0 lies on padding"),
    ],
)
def test_a_pass_that_does_not_fit_is_refused(tiny, block, message):
    ids, mask = padded_batch("left")
    with block(tiny), pytest.raises(HeadwiseError, match=message):
        logits(tiny, ids, attention_mask=mask)


def test_what_can_be_read_in_two_ways_is_refused(tiny):
    ids = text(20)
    with insert(tiny, vectors()), torch.no_grad():
        cache = tiny(ids[:, :10], use_cache=True).past_key_values
        with pytest.raises(HeadwiseError, match="this change of heads cannot tell whether 5 tokens over a cache are the rest of a prompt"):
            tiny(ids[:, 10:15], **with_cache(cache))
    with record(tiny, HEADS) as seen, pytest.raises(HeadwiseError, match="nothing was recorded"):
        _ = seen.outputs


def test_vectors_know_their_norms_and_idle_ways_are_told():
    found = HeadVectors(HeadSet.of(HEADS[:2], (4, 8)), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert found.norms.tolist() == [5.0, 1.0]
    assert found.of(["L2H5"]).values.tolist() == [[0.0, 1.0]]
    assert Force("mix", weight=0.0).is_idle
    assert not Force("two_step").is_idle


def test_numbers_of_numpy_and_torch_are_numbers(tiny):
    ids = torch.arange(2, 14)[None]
    with insert(tiny, vectors(), scale=2.0, answer_from=11):
        right = logits(tiny, ids)
    for scale, place in ((np.float32(2), np.int64(11)), (torch.tensor(2.0), torch.tensor(11)), ((2,), 11)):
        with insert(tiny, vectors(), scale=scale, answer_from=place):
            assert torch.equal(logits(tiny, ids), right)
    with force_copy(tiny, HEADS, [(1, 3)]):
        right = logits(tiny, ids)
    with force_copy(tiny, HEADS, [(np.int64(1), np.int64(3))], beta=np.float64(0.5)):
        assert torch.equal(logits(tiny, ids), right)


@pytest.mark.parametrize(
    ("how", "options"), [("two_step", {"beta": 1e6, "factor": 1e6}), ("mix", {"temperature": 1e6, "weight": 1})]
)
def test_the_largest_options_give_no_nan(tiny, how, options):
    with force_copy(tiny, HEADS, [(1, 3)], how, **options):
        assert logits(tiny, torch.arange(2, 14)[None]).isfinite().all()
