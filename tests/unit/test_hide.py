"""Heads that do not see spans: against attention without these columns, in batches, over caches, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise import HeadSet, HeadwiseError, ablate, compress, hide
from headwise.attention.plan import attached
from headwise.caches.shared import full_cache, shared_past
from headwise.methods.snapkv.press import SnapKV
from headwise.runtime.runner import prefill
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache
from tests.reference.hide import logits_without

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
HEADS = [(0, 1), (0, 6), (1, 3), (3, 0), (3, 1)]
SPANS = [(2, 4), (7, 9)]


@pytest.fixture(scope="module")
def tiny():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def windowed():
    return tiny_model("gemma2")  # windows of 8, capped logits


def text(tokens=14, seed=0, rows=1):
    return torch.randint(3, 96, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def sets(*heads):
    return [HeadSet.of(own, (4, 8)) for own in heads]


@torch.no_grad()
def logits(model, ids, **options):
    return model(ids, **options).logits


@torch.no_grad()
def in_pieces(model, ids, cuts):
    cache, parts = None, []
    for start, stop in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        out = model(ids[:, start:stop], **with_cache(cache), use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    return torch.cat(parts, dim=1)


@settings(max_examples=15)
@given(
    st.integers(0, 99),
    st.lists(st.tuples(st.integers(0, 13), st.integers(1, 5)), min_size=1, max_size=3),
    st.sets(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=6),
    st.sets(st.integers(1, 13), max_size=3),
)
def test_any_spans_heads_and_pieces_equal_attention_without_the_columns(tiny, seed, places, heads, cuts):
    ids, spans = text(seed=seed), [(start, start + length) for start, length in places]
    with hide(tiny, sorted(heads), spans):
        got = in_pieces(tiny, ids, sorted(cuts))
    torch.testing.assert_close(got, logits_without(tiny, ids, lambda _: heads, spans), **CLOSE)


def test_each_batch_row_has_its_own_heads(windowed):
    ids = text(rows=1).expand(4, -1)
    own = sets([(0, 1), (3, 2)], [], [(0, 1)], [(0, 1), (3, 2)])
    with hide(windowed, own, SPANS):
        got = logits(windowed, ids)
    wanted = logits_without(windowed, ids, lambda row: set(own[row]), SPANS)
    torch.testing.assert_close(got, wanted, **CLOSE)
    assert torch.equal(got[0], got[3])
    assert (got[0] - got[2]).abs().max() > 1e-4


def test_rows_inside_and_in_front_of_a_span_are_left_alone(tiny):
    ids = text()
    with attached(tiny):
        before = logits(tiny, ids)
    with hide(tiny, HEADS, [(5, 9)]):
        got = logits(tiny, ids)
    assert torch.equal(got[:, :9], before[:, :9])
    assert (got[:, 9:] - before[:, 9:]).abs().amax(dim=-1).min() > 1e-5
    with hide(tiny, HEADS, [(5, 9)], scope="answer", answer_from=11):
        late = logits(tiny, ids)
    assert torch.equal(late[:, :11], before[:, :11])
    torch.testing.assert_close(late, logits_without(tiny, ids, lambda _: set(HEADS), [(5, 9)], first=11), **CLOSE)


@torch.no_grad()
def test_variants_over_a_shared_past(tiny):
    ids, own = text(), sets([(0, 1)], [], [(0, 1), (2, 5)])
    with attached(tiny):
        past = full_cache(tiny)
        prefill(tiny, past, ids[0, :9].tolist())
        with hide(tiny, own, SPANS), shared_past(tiny, past, 3) as cache:
            got = tiny(ids[:, 9:].expand(3, -1), **with_cache(cache), use_cache=True).logits
    for row, heads in enumerate(own):
        wanted = logits_without(tiny, ids, lambda _, heads=heads: set(heads), SPANS, first=9)[0, 9:]
        torch.testing.assert_close(got[row], wanted, **CLOSE)


class Tap:
    """Look: what head L0H2 gives, and the values of its KV head."""

    def look(self, call):
        if call.layer == 0:
            self.output, self.values = call.output[0, :, 2], call.values[-1][0, 0]


def test_a_head_that_sees_itself_alone_gives_its_own_value(tiny):
    tap = Tap()
    with hide(tiny, [(0, 2)], [(i, i + 1) for i in range(6)]), attached(tiny) as plan, plan.running(tap):
        logits(tiny, text(6))
    torch.testing.assert_close(tap.output, tap.values)


def test_padding_counts_as_positions_and_stays_finite(tiny):
    ids, mask = text(rows=2), torch.ones(2, 14, dtype=torch.int64)
    mask[0, :5] = 0
    with hide(tiny, HEADS, SPANS):
        got = logits(tiny, ids, attention_mask=mask)
    wanted = logits_without(tiny, ids, lambda _: set(HEADS), SPANS, mask)
    assert got.isfinite().all()
    torch.testing.assert_close(got[mask.bool()], wanted[mask.bool()], **CLOSE)


@torch.no_grad()
def test_over_a_compressed_cache_the_positions_that_are_held_are_hidden(tiny):
    ids = text(30)
    with compress(tiny, SnapKV(budget=100)) as cache, hide(tiny, HEADS, SPANS):
        cache.prefill(ids[:, :20])
        got = tiny(ids[:, 20:21], **with_cache(cache)).logits
    with hide(tiny, HEADS, SPANS):
        wanted = logits(tiny, ids[:, :21])[:, 20:]
    torch.testing.assert_close(got, wanted, **CLOSE)
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[0, :4] = 0
    with compress(tiny, SnapKV(budget=12)) as cache, hide(tiny, HEADS, SPANS):
        cache.prefill(text(20, rows=2), attention_mask=mask)
        with pytest.raises(HeadwiseError, match="padding"):
            tiny(text(1, rows=2), attention_mask=torch.cat([mask, mask[:, -1:]], dim=1), **with_cache(cache))


@pytest.mark.parametrize(("heads", "spans"), [([], SPANS), (HEADS, []), (HEADS, [(20, 30)])])
def test_nothing_to_hide_changes_not_a_bit(tiny, heads, spans):
    ids = text()
    with attached(tiny):
        before = logits(tiny, ids)
    with hide(tiny, heads, spans):
        assert torch.equal(logits(tiny, ids), before)


def test_an_inner_block_changes_what_heads_give_when_something_is_hidden(tiny):
    ids = text()
    with hide(tiny, [(1, 3)], SPANS), ablate(tiny, [(1, 3)]):
        got = logits(tiny, ids)
    with ablate(tiny, [(1, 3)]):
        assert torch.equal(got, logits(tiny, ids))


def test_the_model_is_as_before_also_after_an_error(tiny):
    ids = text()
    before, implementation = logits(tiny, ids), tiny.config._attn_implementation
    with pytest.raises(RuntimeError, match="inside"), hide(tiny, HEADS, SPANS):
        raise RuntimeError(str(logits(tiny, ids).shape) + "inside")
    assert tiny.config._attn_implementation == implementation
    assert torch.equal(logits(tiny, ids), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())


@pytest.mark.parametrize(
    ("heads", "options", "message"),
    [
        (HEADS, {"spans": [(3, 3)]}, r"span \[3, 3\) holds no position"),
        (HEADS, {"spans": [(-1, 3)]}, r"span \[-1, 3\) holds no position"),
        ([(4, 0)], {"spans": SPANS}, "L4H0"),
        (HEADS, {"spans": SPANS, "scope": "some"}, "unknown scope 'some'; use all, answer"),
        (HEADS, {"spans": SPANS, "answer_from": -1, "scope": "answer"}, "answer_from is the position"),
    ],
)
def test_wrong_input_is_refused(tiny, heads, options, message):
    with pytest.raises(HeadwiseError, match=message) as caught, hide(tiny, heads, **options):
        pass
    assert "\n" not in str(caught.value)
    assert tiny.config._attn_implementation != "headwise"


def test_another_number_of_rows_is_refused(tiny):
    with (
        hide(tiny, sets([(0, 1)], [(1, 1)], []), SPANS),
        pytest.raises(HeadwiseError, match="3 sets of heads for a batch of 2 rows"),
    ):
        logits(tiny, text(rows=2))
