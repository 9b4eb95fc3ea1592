"""Bytes held against the formula: exact right after the prefill, apart from positions; within 2 % while decoding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.caches.controls import Full
from headwise.caches.groups import Window
from headwise.caches.kept_cache import compress
from headwise.caches.kept_layer import Keep, KeptLayer
from headwise.heads import HeadwiseError
from headwise.maths.memory import cache_bytes, full_counts, streaming_counts
from headwise.methods.adakv.press import AdaKV
from headwise.methods.pyramidkv.press import PyramidKV
from headwise.methods.snapkv.press import SnapKV
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache

LENGTH, LAYERS, KV_HEADS, WIDTH = 60, 4, 2, 16
FLOAT = {"key_width": WIDTH, "value_width": WIDTH, "item_size": 4}
SIZES = {"budget": 20, "window": 4, "sinks": 2}


class Streams:
    prefill = "dense"

    def check(self, layout):
        pass

    def streams(self, layer, layout):
        return [Keep((0,)), Keep((1,), None, Window(3, 6))]

    def kept(self, view):
        return self.streams(view.layer, view.model)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def ids(length=LENGTH, rows=1):
    return torch.randint(2, 96, (rows, length), generator=torch.Generator().manual_seed(length))


def positions_bytes(cache):
    return sum(group.positions.numel() * 4 for layer in cache.kept_layers.values() for group in layer.groups)


def counts(cache):
    return [[len(own) for own in heads] for heads in cache.held_positions().values()]


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("method", [Full(), SnapKV(**SIZES), PyramidKV(**SIZES, beta=2), AdaKV(**SIZES), Streams()])
def test_bytes_after_the_prefill_are_those_of_the_formula(model, method, rows):
    with compress(model, method) as cache:
        cache.prefill(ids(rows=rows))
        assert cache.nbytes - positions_bytes(cache) == cache_bytes(counts(cache), **FLOAT, batch=rows)


@torch.no_grad()
def test_known_budgets_are_known_bytes(model):
    expected = {
        SnapKV(**SIZES): 20 * LAYERS * KV_HEADS * 2 * WIDTH * 4,
        Full(): cache_bytes(full_counts(LENGTH, LAYERS, KV_HEADS), **FLOAT),
    }
    for method, nbytes in expected.items():
        with compress(model, method) as cache:
            cache.prefill(ids())
            assert cache.nbytes - positions_bytes(cache) == nbytes
    with compress(model, Streams()) as cache:
        cache.prefill(ids())
        streams = streaming_counts(LENGTH, [[False, True]] * LAYERS, 3, 6)
        assert cache.nbytes - positions_bytes(cache) == cache_bytes(streams, **FLOAT)


@torch.no_grad()
def test_bytes_while_decoding_are_within_two_percent():
    long = tiny_model("llama", max_position_embeddings=4096)
    with compress(long, SnapKV(budget=1500)) as cache:
        cache.prefill(ids(2000))
        for _ in range(24):
            long(input_ids=ids(1), **with_cache(cache))
            held, formula = cache.nbytes - positions_bytes(cache), cache_bytes(counts(cache), **FLOAT)
            assert formula <= held <= 1.02 * formula
        assert counts(cache) == [[1524] * KV_HEADS] * LAYERS


@torch.no_grad()
def test_windows_do_not_grow(model):
    with compress(model, Streams()) as cache:
        cache.prefill(ids())
        sizes = []
        for _ in range(40):
            model(input_ids=ids(1), **with_cache(cache))
            sizes.append(cache.kept_layers[0].groups[1].nbytes)
        assert set(sizes) == {9 * 2 * WIDTH * 4 + 9 * 4}


@given(
    st.lists(st.lists(st.integers(0, 500), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(1, 300), st.integers(1, 300), st.sampled_from([1, 2, 4]), st.integers(1, 5),
)  # fmt: skip
@settings(max_examples=50)
def test_the_formula_is_the_size_of_such_tensors(held, key_width, value_width, item_size, batch):
    kind = {1: np.int8, 2: np.float16, 4: np.float32}[item_size]
    expected = sum(
        np.empty((batch, count, width), dtype=kind).nbytes for row in held for count in row for width in (key_width, value_width)
    )
    assert cache_bytes(held, key_width=key_width, value_width=value_width, item_size=item_size, batch=batch) == expected


def test_streaming_heads_hold_their_window_or_less():
    assert streaming_counts(100, [[True, False], [False, True]], 4, 20) == [[24, 100], [100, 24]]
    assert streaming_counts(10, [[True, False]], 4, 20) == [[10, 10]]
    assert streaming_counts(7, [[False, False]], 4, 20) == full_counts(7, 1, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"key_width": 0}, "at least 1"), ({"item_size": -4}, "at least 1"), ({"batch": 0}, "at least 1")],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(HeadwiseError, match=message):
        cache_bytes([[1]], **{**FLOAT, **options})
    with pytest.raises(HeadwiseError, match="fewer than 0"):
        cache_bytes([[3, -1]], **FLOAT)


@torch.no_grad()
def test_a_dense_prefill_holds_one_full_layer_at_a_time(model, monkeypatch):
    """While a prompt is read, the cache is never larger than one whole layer and what is kept of those before it."""
    held = []
    cut = KeptLayer.cut

    def watched(layer, compressor, call, layout):
        held.append(cache.nbytes)
        cut(layer, compressor, call, layout)

    monkeypatch.setattr(KeptLayer, "cut", watched)
    with compress(model, SnapKV(**SIZES)) as cache:
        cache.prefill(ids())
        layer = cache_bytes(full_counts(LENGTH, 1, KV_HEADS), **FLOAT)
        each = cache.nbytes // LAYERS
    assert held == [layer + each * before for before in range(LAYERS)]
