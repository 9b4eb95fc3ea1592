"""The memory planner of SpeContext: every answer against a search over all that is possible, and the paper's own example."""

import math
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headwise.heads import HeadwiseError
from headwise.runtime.memory_plan import (
    LayerShape,
    Sizes,
    device_bytes,
    fixed_bytes,
    host_bytes,
    largest_batch,
    layers_on_host,
    moved_bytes,
    read_break_even,
    request_bytes,
    thresholds,
    transfer_seconds,
)

# Llama-3.1-8B in 16 bits with the paper's draft: a full layer of it, all buffers of repeated KV heads, 60 MB.
LLAMA = Sizes(2 * 8_030_261_248, (LayerShape(8, 128, 128),) * 32, draft_weights=60_000_000, draft_layers=1, alpha=4)
CARD = 80 * 10**9

shapes = st.builds(
    LayerShape, st.integers(1, 4), st.integers(1, 16), st.integers(1, 16), st.one_of(st.none(), st.integers(1, 40))
)
sizes = st.builds(
    Sizes,
    weights=st.integers(0, 10_000),
    layers=st.lists(shapes, min_size=1, max_size=6).map(tuple),
    item_size=st.sampled_from([1, 2, 4]),
    budget=st.integers(1, 60),
    draft_weights=st.integers(0, 500),
    draft_layers=st.sampled_from([0, 0.5, 1]),
    alpha=st.sampled_from([0, 1, 4]),
    buffer_share=st.sampled_from([0, 0.3]),
)
requests = st.lists(st.integers(0, 200), min_size=1, max_size=5)


def counted(model, lengths, away):
    """Bytes on the device, position by position, with the layers in `away` on the host."""
    numbers = 0
    for length in lengths:
        for layer, shape in enumerate(model.layers):
            for position in range(length):
                from_the_end = length - 1 - position
                keeps = position < model.budget if layer in away else shape.window is None or from_the_end < shape.window
                numbers += keeps * shape.kv_heads * (shape.key_width + shape.value_width)
    widest = max(shape.kv_heads * (shape.key_width + shape.value_width) for shape in model.layers)
    extra = math.ceil((model.draft_layers + model.alpha) * widest * model.item_size) * sum(lengths)
    weights = model.weights + model.draft_weights
    return weights + math.ceil(model.buffer_share * weights) + numbers * model.item_size + extra


def from_the_last(model, count):
    full = [layer for layer, shape in enumerate(model.layers) if shape.window is None]
    return set(full[len(full) - count :])


@given(sizes, requests, st.data())
def test_bytes_are_those_counted_position_by_position(model, lengths, data):
    count = data.draw(st.integers(0, len(model.movable)))
    assert device_bytes(model, lengths, count) == counted(model, lengths, from_the_last(model, count))
    each = sum(model.layers[layer].numbers for layer in from_the_last(model, count)) * model.item_size
    assert host_bytes(model, lengths, count) == each * sum(lengths)


@given(sizes, requests, st.integers(0, 200_000))
def test_the_most_layers_that_fit_stay_on_the_device(model, lengths, memory):
    counts = range(len(model.movable) + 1)
    fitting = [count for count in counts if counted(model, lengths, from_the_last(model, count)) <= memory]
    if fitting:
        assert layers_on_host(model, memory, lengths) == min(fitting)
    else:
        with pytest.raises(HeadwiseError, match="do not fit" if fixed_bytes(model) <= memory else "cannot hold the weights"):
            layers_on_host(model, memory, lengths)


@given(sizes, st.integers(0, 200_000), st.integers(1, 4))
def test_a_threshold_is_the_longest_length_that_fits(model, memory, count):
    found = thresholds(model, memory, count)
    assert len(found) == len(model.movable) + 1
    for on_host, longest in enumerate(found):
        if longest is None:  # nothing grows with the length any more
            assert request_bytes(model, 10**6, on_host) == request_bytes(model, 10**7, on_host)
            continue
        assert longest == 0 or device_bytes(model, [longest] * count, on_host) <= memory
        assert device_bytes(model, [longest + 1] * count, on_host) > memory
    limits = [math.inf if longest is None else longest for longest in found]
    assert limits == sorted(limits)


@given(sizes, st.integers(0, 200_000), st.integers(1, 200), st.data())
def test_the_largest_batch_fits_and_one_more_does_not(model, memory, length, data):
    count = data.draw(st.integers(0, len(model.movable)))
    assume(request_bytes(model, length, count) * 1000 > memory)
    batch = largest_batch(model, memory, length, count)
    assert batch == 0 or device_bytes(model, [length] * batch, count) <= memory
    assert device_bytes(model, [length] * (batch + 1), count) > memory


@given(sizes, st.data())
def test_a_context_within_the_budget_gains_nothing_on_the_host(model, data):
    lengths = data.draw(st.lists(st.integers(0, model.budget), min_size=1, max_size=4))
    every = len(model.movable)
    assert device_bytes(model, lengths, every) == device_bytes(model, lengths, 0)
    assert moved_bytes(model, lengths, every, 0.0) == 0
    with pytest.raises(HeadwiseError):
        layers_on_host(model, device_bytes(model, lengths) - 1, lengths)


def test_unequal_requests_count_by_their_sum():
    assert device_bytes(LLAMA, [1_000, 9_000]) == device_bytes(LLAMA, [5_000, 5_000]) < device_bytes(LLAMA, [9_000, 9_000])


@pytest.mark.parametrize(
    ("requests", "on_host", "thousands"),
    [(4, 0, 97), (16, 0, 24), (32, 0, 12), (4, 16, 170), (16, 16, 41), (32, 16, 20), (4, 32, 708), (16, 32, 167), (32, 32, 77)],
)
def test_worked_numbers_of_llama_on_a_card_of_80_gb(requests, on_host, thousands):
    found = thresholds(LLAMA, CARD, requests)[on_host]
    assert round(found / 1000) == thousands
    assert found == closed_form(LLAMA, CARD, requests, on_host)


def test_bytes_of_a_token_of_the_worked_example():
    assert request_bytes(LLAMA, 1) == 151_552


@pytest.mark.parametrize("on_host", range(33))
def test_equation_7_bounds_what_the_printed_algorithm_breaks(on_host):
    """Algorithm 1 as printed leaves the factor 4 out of i * B * R * H * D, and its lengths do not fit."""
    ours = thresholds(LLAMA, CARD, 32)[on_host]
    printed = closed_form(LLAMA, CARD, 32, on_host, factor=1)
    assert device_bytes(LLAMA, [ours] * 32, on_host) <= CARD
    assert (device_bytes(LLAMA, [printed] * 32, on_host) > CARD) == (on_host > 0)


def closed_form(model, memory, requests, on_host, factor=4):
    """ST[i] of Algorithm 1 for equal layers and lengths above the budget; factor 1: as printed."""
    shape, layers = model.layers[0], len(model.layers)
    heads = requests * shape.kv_heads * shape.key_width
    room = memory - fixed_bytes(model) - factor * on_host * model.budget * heads
    return math.floor(room / (4 * heads * (layers + 1 + model.alpha - on_host)))


def test_bytes_moved_of_the_worked_example():
    """All layers on the host, 16 bits: 268 MB for the whole budget, 54 MB at an overlap of 0.8."""
    assert moved_bytes(LLAMA, [100_000], 32, overlap=0) == 268_435_456
    assert moved_bytes(LLAMA, [100_000], 32) == 53_687_091
    assert moved_bytes(LLAMA, [100_000, 100_000, 2048], 16) == 53_687_091
    assert moved_bytes(LLAMA, [100_000], 0) == 0
    assert transfer_seconds(53_687_091, 25e9) == pytest.approx(0.002147, rel=1e-3)


@given(sizes)
def test_break_even_is_the_first_length_at_which_a_sparse_step_reads_less(model):
    full = sum(shape.numbers for shape in model.layers if shape.window is None) * model.item_size
    draft = math.ceil(model.draft_layers * max(shape.numbers for shape in model.layers) * model.item_size)
    reads_less = [full * model.budget + draft * length < full * length for length in range(5_000)]
    found = read_break_even(model)
    if found is None:
        assert not any(reads_less)
    elif found < 5_000:
        assert reads_less.index(True) == found


def test_sliding_layers_stay_and_hold_their_window():
    model = Sizes(0, (LayerShape(1, 8, 8, window=10), LayerShape(1, 8, 8)) * 2, draft_layers=0, budget=20)
    assert model.movable == (3, 1)
    assert request_bytes(model, 100, 2) == (2 * 10 + 2 * 20) * 16 * 2
    assert thresholds(model, 10**6, 1)[2] is None
    with pytest.raises(HeadwiseError, match="no layer can leave"):
        layers_on_host(replace(model, layers=model.layers[:1]), 10, [100])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": ()}, "at least one layer"),
        ({"budget": 0}, "budget must be a whole number of at least 1"),
        ({"weights": -1}, "weights must be a whole number of at least 0"),
        ({"item_size": 2.0}, "item_size must be a whole number"),
        ({"alpha": -1}, "alpha must lie in"),
        ({"buffer_share": math.nan}, "buffer_share must be a finite number"),
        ({"draft_layers": 1e300}, "draft_layers must lie in"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(change, said):
    with pytest.raises(HeadwiseError, match=said):
        replace(LLAMA, **change)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: request_bytes(LLAMA, -1), "length"),
        (lambda: request_bytes(LLAMA, 10, 33), "33 layers cannot be on the host; 32 have full attention"),
        (lambda: request_bytes(LLAMA, 10, -1), "on_host"),
        (lambda: thresholds(LLAMA, CARD, 0), "requests"),
        (lambda: largest_batch(LLAMA, CARD, 0, 0), "length"),
        (lambda: moved_bytes(LLAMA, [9], 1, 1.5), "overlap must lie in"),
        (lambda: transfer_seconds(1, 0.0), "bandwidth must be above 0"),
        (lambda: LayerShape(0, 1, 1), "kv_heads"),
        (lambda: LayerShape(1, 1, 1, 0), "window"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(call, said):
    with pytest.raises(HeadwiseError, match=said):
        call()
