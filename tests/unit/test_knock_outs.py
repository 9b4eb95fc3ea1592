"""Log-probabilities of many variants over one past: against separate runs, and how few rows each layer runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from headwise.attention import ablate, attached
from headwise.attention.means import head_means
from headwise.attention.stagger import staggered
from headwise.caches.shared import fork, full_cache
from headwise.heads import HeadSet, HeadwiseError
from headwise.models.forward import forward
from headwise.models.model import Model
from headwise.runtime.knock_outs import variant_logprobs
from headwise.runtime.runner import prefill
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.helpers import with_cache

PAST, REST = 30, 7  # longer than the sliding windows of the tiny models
OPTIONS = [[5], [9, 4, 7], [5, 8]]


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    return Model(tiny_model(request.param))


@pytest.fixture(scope="module")
def llama():
    return Model(tiny_model("llama"))


def tokens(count, seed=0):
    return torch.randint(2, 96, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def past_of(model, count=PAST):
    cache = full_cache(model.hf)
    with attached(model):
        prefill(model.hf, cache, tokens(count))
    return cache


def sets_of(model):
    """Out of order, with an empty set, a repeated one, and one over two layers."""
    layers = list(model.modules)
    chosen = [[(-1, 2)], [], [(0, 1), (-1, 3)], [(0, 7)], [(1, 0)], [(1, 5), (-1, 0)], [(-1, 2)]]
    return [HeadSet.of([(layers[layer], head) for layer, head in heads], model.heads.shape) for heads in chosen]


@torch.no_grad()
def separately(model, past, rest, options, sets, mode, means=None):
    """One pass per set and option over a fork of the past."""
    found = torch.empty(len(sets), len(options))
    for i, chosen in enumerate(sets):
        for j, option in enumerate(options):
            with ablate(model, chosen, mode, scope="all", means=means):
                logits = forward(model.hf, torch.tensor([[*rest, *option]]), fork(past)).logits[0]
            behind = logits[len(rest) - 1 : -1].float().log_softmax(dim=-1)
            found[i, j] = sum(behind[step, token] for step, token in enumerate(option))
    return found


@pytest.mark.parametrize("mode", ["zero", "uniform", "mean"])
def test_equal_to_separate_runs(model, mode):
    means = head_means(model, [torch.tensor([tokens(20, 5)])]) if mode == "mean" else None
    past, sets = past_of(model), sets_of(model)
    got = variant_logprobs(model, past, tokens(REST, 1), OPTIONS, sets, mode, means=means)
    expected = separately(model, past, tokens(REST, 1), OPTIONS, sets, mode, means)
    assert got.shape == (7, 3)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert (expected[[0, 2, 3, 4, 5]] - expected[1]).abs().amax(dim=1).min() > 1e-3
    torch.testing.assert_close(got[0], got[6], atol=1e-6, rtol=0)
    if mode == "zero":
        pieces = variant_logprobs(model, past, tokens(REST, 1), OPTIONS, sets, mode, rows=2)
        torch.testing.assert_close(pieces, expected, atol=1e-4, rtol=0)


def test_the_model_and_the_past_are_as_before(model):
    """Bit for bit, also after an error on the way."""
    past, rest = past_of(model), tokens(REST, 1)
    with torch.no_grad():
        before = model.hf(torch.tensor([rest]), use_cache=False).logits
        with attached(model):
            behind = model.hf(torch.tensor([rest]), **with_cache(fork(past)), use_cache=True).logits
    implementation = model.hf.config._attn_implementation
    variant_logprobs(model, past, rest, OPTIONS, sets_of(model))
    broken = model.layers[-1].register_forward_pre_hook(_fail)
    with pytest.raises(RuntimeError, match="on the way"):
        variant_logprobs(model, past, rest, OPTIONS, sets_of(model))
    broken.remove()
    assert past.get_seq_length() == PAST
    assert model.hf.config._attn_implementation == implementation
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())
    with torch.no_grad():
        assert torch.equal(model.hf(torch.tensor([rest]), use_cache=False).logits, before)
        with attached(model):
            assert torch.equal(model.hf(torch.tensor([rest]), **with_cache(past), use_cache=True).logits, behind)


def _fail(*_):
    raise RuntimeError("on the way")


@settings(max_examples=15)
@given(
    st.lists(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=4), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(2, 95), min_size=1, max_size=3), min_size=1, max_size=3),
    st.integers(1, 7),
    st.integers(0, 12),
    st.integers(1, 5),
)
@pytest.mark.slow
def test_any_sets_options_and_lengths(llama, chosen, options, rows, before, rest):
    sets, past = [HeadSet.of(sorted(heads), llama.heads.shape) for heads in chosen], past_of(llama, before)
    got = variant_logprobs(llama, past, tokens(rest, 1), options, sets, rows=rows)
    torch.testing.assert_close(got, separately(llama, past, tokens(rest, 1), options, sets, "zero"), atol=1e-4, rtol=0)
    assert (got <= 0).all()


def rows_by_layer(model, past, sets, **options):
    """Batch rows of every pass of every layer."""
    seen = [[] for _ in model.layers]
    handles = [
        layer.self_attn.register_forward_pre_hook(
            lambda _, inputs, given, own=own: own.append(len(given.get("hidden_states", inputs[0] if inputs else None))),
            with_kwargs=True,
        )
        for layer, own in zip(model.layers, seen, strict=True)
    ]
    variant_logprobs(model, past, tokens(REST, 1), [[5], [6]], sets, **options)
    for handle in handles:
        handle.remove()
    return seen


def test_a_layer_runs_only_the_variants_that_differ_there(llama):
    sets = [HeadSet.of(heads, (4, 8)) for heads in ([(3, 0)], [(1, 2)], [], [(1, 4), (2, 0)], [(3, 7)])]
    assert rows_by_layer(llama, past_of(llama), sets) == [[1], [3], [3], [5]]  # one pass: options of one token need no more
    assert rows_by_layer(llama, past_of(llama), sets, rows=2) == [[1, 1, 1], [3, 1, 1], [3, 1, 1], [3, 3, 1]]
    assert rows_by_layer(llama, past_of(llama), [HeadSet((), (4, 8))]) == [[1]] * 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rest": []}, "no token behind the past"),
        ({"options": []}, "no continuation to score, or one without tokens"),
        ({"options": [[5], []]}, "no continuation to score, or one without tokens"),
        ({"sets": []}, "no set of heads to take away"),
        ({"sets": [HeadSet.of([(1, 1)], (2, 3))]}, "belong to a model of 2 layers x 3 heads"),
        ({"mode": "resample"}, "know the modes zero, uniform, mean; got 'resample'"),
        ({"mode": "mean"}, "mode 'mean' needs calibrated means"),
        ({"means": torch.zeros(4, 8, 16)}, "only mode 'mean' takes them"),
        ({"rows": 0}, "at least one variant must run at once; got rows=0"),
        ({"options": [[96]]}, "token id 96 is outside of the model's vocabulary"),
        ({"rest": [-1]}, "token id -1 is outside"),
        ({"options": [[5], [5] * 221]}, "rest and options need 257 positions, but llama has 256"),
    ],
)
def test_wrong_input_is_refused(llama, changed, message):
    given = {"past": past_of(llama), "rest": tokens(REST, 1), "options": OPTIONS, "sets": sets_of(llama)} | changed
    with pytest.raises(HeadwiseError, match=message) as caught:
        variant_logprobs(llama, **given)
    assert "\n" not in str(caught.value)
    assert llama.hf.config._attn_implementation != "headwise"


def test_a_past_that_does_not_serve_is_refused():
    model = Model(tiny_model("gemma2"))
    sets, rest = sets_of(model), tokens(REST, 1)
    dropped, two = DynamicCache(config=model.hf.config), full_cache(model.hf)
    with attached(model), torch.no_grad():
        model.hf(torch.tensor([tokens(PAST)]), **with_cache(dropped), use_cache=True)
        model.hf(torch.tensor([tokens(PAST)] * 2), **with_cache(two), use_cache=True)
    with pytest.raises(HeadwiseError, match="the past has dropped positions that sliding windows no longer see"):
        variant_logprobs(model, dropped, rest, OPTIONS, sets)
    with pytest.raises(HeadwiseError, match="must have one row; this one has 2"):
        variant_logprobs(model, two, rest, OPTIONS, sets)


def test_logits_that_are_no_numbers_are_refused():
    model = Model(tiny_model("llama"))
    past = past_of(model)
    with torch.no_grad():
        model.final_norm.weight[3] = float("nan")
    with pytest.raises(HeadwiseError, match="not finite"):
        variant_logprobs(model, past, tokens(REST, 1), OPTIONS, sets_of(model))


def test_variants_are_made_of_one_row_of_a_model_without_recurrent_layers(llama):
    sets = sets_of(llama)
    with staggered(llama, sets) as places:
        assert places == [5, 0, 1, 2, 3, 4, 6]
        with pytest.raises(HeadwiseError, match="made of one row; this pass has 2"):
            llama.hf(torch.tensor([tokens(5)] * 2))
    hybrid = Model(tiny_model("qwen3_next"))
    with pytest.raises(HeadwiseError, match="has recurrent layers"), staggered(hybrid, sets_of(hybrid)):
        pass
