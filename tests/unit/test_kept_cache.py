"""Compressed caches in use: generate, several turns, padding, chunks, forks, cropping, beams, and what is refused."""

import copy

import pytest
import torch
from transformers import DynamicCache

from headwise.attention.plan import attached
from headwise.caches.controls import Full
from headwise.caches.groups import Growing, Window
from headwise.caches.kept_cache import KeptCache, compress
from headwise.caches.kept_layer import Keep
from headwise.heads import HeadwiseError
from headwise.methods.adakv.press import AdaKV
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache
from tests.reference.kept import continued

PROMPT = 40
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SNAP = SnapKV(budget=12, window=4, sinks=2)
ADA = AdaKV(budget=12, window=4, sinks=2)


class Streams:
    """The first KV head keeps everything, the second one a window, in the given kind of prefill."""

    def __init__(self, prefill="dense", window=Window(3, 6)):
        self.prefill, self.window = prefill, window

    def check(self, layout):
        pass

    def streams(self, layer, layout):
        return [Keep((0,)), Keep((1,), None, self.window)]

    def kept(self, view):
        return self.streams(view.layer, view.model)


METHODS = {"snapkv": SNAP, "adakv": ADA, "dense": Streams(), "chunked": Streams("chunked"), "windowed": Streams("windowed")}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


@pytest.fixture(scope="module")
def model():
    made = tiny_model("llama")
    made.generation_config.eos_token_id = None  # answers of a fixed length
    made.generation_config.pad_token_id = 1
    return made


def text(seed, tokens, rows=1):
    return torch.randint(2, 96, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_hand(model, cache, ids, steps):
    """Greedy ids [1, steps] behind `ids`, one pass per token."""
    said = []
    new = ids
    for _ in range(steps):
        new = model(input_ids=new, **with_cache(cache)).logits[:, -1:].argmax(dim=-1)
        said.append(new)
    return torch.cat(said, dim=1)


def snapshot(cache):
    return [
        (layer.seen, [[t[..., : g.used, :].clone() for t in (g.keys, g.values, g.positions[..., None])] for g in layer.groups])
        for layer in cache.kept_layers.values()
    ]


def same(one, other):
    for (seen, groups), (seen_too, groups_too) in zip(one, other, strict=True):
        assert seen == seen_too
        for group, group_too in zip(groups, groups_too, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(group, group_too, strict=True))


@torch.no_grad()
def test_logits_are_those_of_the_slow_reference(model):
    prompt, rest = text(1, PROMPT), text(2, 6)
    with compress(model, ADA) as cache:
        cache.prefill(prompt)
        held = {layer: [set(own.tolist()) for own in heads] for layer, heads in cache.held_positions().items()}
        got = model(input_ids=rest, **with_cache(cache)).logits
    assert len({len(own) for heads in held.values() for own in heads}) > 1  # heads of unequal size
    torch.testing.assert_close(got, continued(model, prompt, rest, held), **CLOSE)


@each_method
def test_generate_is_the_loop_by_hand(model, method):
    ids = text(3, PROMPT)
    with compress(model, method) as cache:
        expected = by_hand(model, cache, ids, 12)
    with compress(model, method) as cache:
        got = model.generate(ids, **with_cache(cache), max_new_tokens=12, do_sample=False)
    assert got[:, PROMPT:].tolist() == expected.tolist()


@each_method
def test_a_second_turn_of_several_tokens(model, method):
    ids, question = text(4, PROMPT), text(5, 7)
    with compress(model, method) as cache:
        first = by_hand(model, cache, ids, 5)
        second = by_hand(model, cache, torch.cat([first[:, -1:], question], dim=1), 5)
    with compress(model, method) as cache:
        turn = model.generate(ids, **with_cache(cache), max_new_tokens=5, do_sample=False)
        whole = torch.cat([turn, question], dim=1)
        got = model.generate(whole, **with_cache(cache), max_new_tokens=5, do_sample=False)
        assert cache.get_seq_length() == got.shape[1] - 1
    assert got[:, PROMPT : PROMPT + 5].tolist() == first.tolist()
    assert got[:, -5:].tolist() == second.tolist()


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m is not ADA])  # its rows share their counts
def test_generate_with_padded_rows_is_every_row_alone(model, method):
    pads = [9, 0, 32]  # the last row has fewer tokens than the budget
    rows = [text(10 + i, PROMPT - pad) for i, pad in enumerate(pads)]
    ids = torch.stack([torch.cat([torch.ones(pad, dtype=torch.int64), row[0]]) for pad, row in zip(pads, rows, strict=True)])
    mask = torch.stack([torch.cat([torch.zeros(pad), torch.ones(PROMPT - pad)]) for pad in pads]).long()
    with compress(model, method) as cache:
        together = model.generate(ids, attention_mask=mask, **with_cache(cache), max_new_tokens=8, do_sample=False)
        held = [cache.held_positions(row)[1] for row in range(3)]
    for i, row in enumerate(rows):
        with compress(model, method) as cache:
            alone = model.generate(row, **with_cache(cache), max_new_tokens=8, do_sample=False)
            own = cache.held_positions()[1]
        assert together[i, PROMPT:].tolist() == alone[0, PROMPT - pads[i] :].tolist()
        assert [a.tolist() for a in held[i]] == [b.tolist() for b in own]


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 8, 13, 40, 100])
@each_method
def test_a_prefill_in_chunks(model, method, chunk):
    ids, rest = text(20, PROMPT), text(21, 3)
    with compress(model, method) as cache:
        expected = [cache.prefill(ids), cache.held_positions(), model(input_ids=rest, **with_cache(cache)).logits]
    with compress(model, method) as cache:
        got = [cache.prefill(ids, chunk=chunk), cache.held_positions(), model(input_ids=rest, **with_cache(cache)).logits]
    assert sum(map(len, got[1][0])) == sum(map(len, expected[1][0]))
    if method not in (SNAP, ADA) or chunk >= 4:  # in shorter chunks fewer queries look back, so other tokens may be kept
        assert all(a.tolist() == b.tolist() for i in range(4) for a, b in zip(got[1][i], expected[1][i], strict=True))
        if method.prefill != "chunked":  # there a chunk sees what was held before it, so numbers differ by design
            torch.testing.assert_close(got[0], expected[0], **CLOSE)
            torch.testing.assert_close(got[2], expected[2], **CLOSE)


@torch.no_grad()
def test_a_failed_prefill_in_chunks_leaves_the_cache_able_to_cut(model, monkeypatch):
    with compress(model, SNAP) as cache:
        with pytest.raises(HeadwiseError, match="at least 1 token"):
            cache.prefill(text(20, PROMPT), chunk=0)
        with pytest.raises(HeadwiseError, match="vocabulary"):
            cache.prefill(torch.full((1, 30), 10_000), chunk=10)
        cache.reset()
        cache.prefill(text(20, PROMPT), chunk=10)
        assert {len(own) for own in cache.held_positions()[0]} == {12}


@torch.no_grad()
@each_method
def test_forks_are_like_fresh_runs_and_leave_the_original_alone(model, method):
    ids, questions = text(30, PROMPT), [text(31, 5), text(32, 9)]
    fresh = []
    for question in questions:
        with compress(model, method) as cache:
            cache.prefill(ids)
            fresh.append(by_hand(model, cache, question, 30))
    with compress(model, method) as cache:
        cache.prefill(ids)
        before = snapshot(cache)
        forks = [cache.fork() for _ in questions]
        assert [fork.get_seq_length() for fork in forks] == [PROMPT, PROMPT]
        got = [by_hand(model, fork, question, 30) for fork, question in zip(forks, questions, strict=True)]
        same(before, snapshot(cache))
        grown = snapshot(forks[0])
        again = by_hand(model, cache, questions[1], 30)  # the original goes on, its forks do not change
        same(grown, snapshot(forks[0]))
    assert [g.tolist() for g in got] == [f.tolist() for f in fresh]
    assert again.tolist() == fresh[1].tolist()


@torch.no_grad()
def test_forks_of_forks_and_of_models_with_other_layers(model):
    for family in ("gemma3_text", "qwen3_next", "llama"):
        own = tiny_model(family)
        with compress(own, SNAP) as cache:
            cache.prefill(text(33, PROMPT))
            expected = by_hand(own, cache.fork(), text(34, 4), 12)
            child = cache.fork().fork()
            by_hand(own, child, text(35, 2), 5)
            assert by_hand(own, cache, text(34, 4), 12).tolist() == expected.tolist()


@torch.no_grad()
@pytest.mark.parametrize("method", [SNAP, ADA])
def test_cropping_takes_new_tokens_back(model, method):
    ids, rest, other = text(40, PROMPT), text(41, 20), text(42, 3)
    with compress(model, method) as cache:
        cache.prefill(ids)
        expected = model(input_ids=other, **with_cache(cache.fork())).logits
        model(input_ids=rest, **with_cache(cache))
        assert cache.get_seq_length() == PROMPT + 20
        cache.crop(-20)
        assert cache.get_seq_length() == PROMPT
        torch.testing.assert_close(model(input_ids=other, **with_cache(cache)).logits, expected, **CLOSE)
        with pytest.raises(HeadwiseError, match="a head holds only"):
            cache.crop(-30)


@torch.no_grad()
def test_windows_and_padded_rows_cannot_be_cropped(model):
    with compress(model, Streams()) as cache:
        cache.prefill(text(40, PROMPT))
        with pytest.raises(HeadwiseError, match="fork the cache first"):
            cache.crop(-1)
    mask = torch.ones(1, PROMPT, dtype=torch.int64)
    mask[0, :3] = 0
    with compress(model, SNAP) as cache:
        cache.prefill(text(40, PROMPT), mask)
        with pytest.raises(HeadwiseError, match="without padding"):
            cache.crop(-1)


@torch.no_grad()
@each_method
def test_reset_makes_the_cache_as_new(model, method):
    one, other = text(50, PROMPT), text(51, 33)
    with compress(model, method) as cache:
        expected = cache.prefill(other)
        wanted = snapshot(cache)
    with compress(model, method) as cache:
        cache.prefill(one)
        with pytest.raises(HeadwiseError, match=r"call reset\(\) first"):
            cache.prefill(other)
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.nbytes == 0
        assert torch.equal(cache.prefill(other), expected)
        same(wanted, snapshot(cache))


@torch.no_grad()
@each_method
def test_rows_are_reordered_and_repeated(model, method):
    ids, rest = text(60, PROMPT, rows=3), text(61, 4, rows=3)
    order = torch.tensor([2, 0, 0])
    with compress(model, method) as cache:
        cache.prefill(ids)
        before = snapshot(cache)
        expected = model(input_ids=rest, **with_cache(cache.fork())).logits
        moved = cache.fork()
        moved.reorder_cache(order)
        torch.testing.assert_close(model(input_ids=rest[order], **with_cache(moved)).logits, expected[order], **CLOSE)
        twice = cache.fork()
        twice.batch_repeat_interleave(2)
        got = model(input_ids=rest.repeat_interleave(2, dim=0), **with_cache(twice)).logits
        torch.testing.assert_close(got, expected.repeat_interleave(2, dim=0), **CLOSE)
        same(before, snapshot(cache))
        torch.testing.assert_close(model(input_ids=rest, **with_cache(cache)).logits, expected, **CLOSE)


def test_beam_search(model):
    ids = text(62, PROMPT, rows=2)
    options = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    with attached(model):
        expected = model.generate(ids, **with_cache(DynamicCache(config=model.config)), **options)
    with compress(model, Full()) as cache:
        assert model.generate(ids, **with_cache(cache), **options).tolist() == expected.tolist()
    with compress(model, SNAP) as cache:
        together = model.generate(ids, **with_cache(cache), **options)
    for i in range(2):
        with compress(model, SNAP) as cache:
            assert model.generate(ids[i : i + 1], **with_cache(cache), **options).tolist() == together[i : i + 1].tolist()
    assert together.tolist() != expected.tolist()


def test_the_model_is_as_before_after_the_block(model):
    ids = text(70, PROMPT)
    with torch.no_grad():
        before, names = model(ids).logits, set(vars(model))
        with compress(model, SNAP) as cache:
            cache.prefill(ids)
        assert torch.equal(model(ids).logits, before)
        with pytest.raises(HeadwiseError, match="vocabulary"), compress(model, SNAP) as cache:
            cache.prefill(torch.full((1, 5), 10_000))
        assert torch.equal(model(ids).logits, before)
    assert set(vars(model)) == names


@torch.no_grad()
def test_the_cache_of_another_model_is_refused(model):
    twin = copy.deepcopy(model)
    with compress(model, SNAP) as cache, compress(twin, SNAP) as other:
        cache.prefill(text(71, PROMPT))
        with pytest.raises(HeadwiseError, match="another model"):
            model(input_ids=text(71, 3), **with_cache(other))
        with pytest.raises(HeadwiseError, match="another model"):
            twin(input_ids=text(71, 3), **with_cache(cache))


@torch.no_grad()
def test_use_outside_of_the_block_is_refused(model):
    with compress(model, SNAP) as cache:
        cache.prefill(text(72, PROMPT))
    with pytest.raises(HeadwiseError, match="only inside the `compress` block"):
        model(input_ids=text(73, 2), **with_cache(cache))
    cache.reset()
    with pytest.raises(HeadwiseError, match="only inside the `compress` block"):
        model(input_ids=text(73, PROMPT), **with_cache(cache))  # a prefill, that nobody would cut


@torch.no_grad()
def test_masks_of_four_dimensions_and_unfinished_prefills_are_refused(model):
    with compress(model, SNAP) as cache:
        with pytest.raises(HeadwiseError, match=r"\[batch, tokens\] only"):
            model(input_ids=text(74, 5), attention_mask=torch.ones(1, 1, 5, 5), **with_cache(cache))
        with pytest.raises(HeadwiseError, match="only a cache whose prefill has ended"):
            cache.fork()


@pytest.mark.parametrize(
    ("family", "skipped"), [("gemma3_text", [0, 1]), ("qwen3_next", [0, 2]), ("cohere2", [0, 1, 2]), ("llama", [])]
)
def test_layers_without_full_attention_are_named(family, skipped):
    own = tiny_model(family)
    with compress(own, SNAP) as cache, torch.no_grad():
        assert cache.skipped == skipped
        cache.prefill(text(75, PROMPT))
        assert list(cache.held_positions()) == [layer for layer in range(4) if layer not in skipped]
        assert cache.nbytes > sum(layer.nbytes for layer in cache.kept_layers.values()) or not skipped


@torch.no_grad()
def test_a_growing_group_gets_spare_room_and_says_so(model):
    with compress(model, StreamingLLM(budget=12)) as cache:
        cache.prefill(text(76, PROMPT))
        tight = cache.nbytes
        model(input_ids=text(77, 1), **with_cache(cache))
        group = cache.kept_layers[0].groups[0]
        assert isinstance(group, Growing)
        assert isinstance(cache, KeptCache)
        assert group.keys.shape[2] > group.used == 13
        assert cache.nbytes > tight
