"""For every family: our attention, row statistics and ablations against transformers' own."""

import copy

import pytest
import torch

from headwise.attention import ablate, observe, steer
from headwise.attention.means import head_means, head_samples
from headwise.attention.plan import attached
from headwise.attention.tail import last_rows
from headwise.heads import HeadId, HeadSet, HeadwiseError, UnsupportedModelError
from headwise.models.families import family_of
from headwise.models.model import as_model
from headwise.models.weights import silence_in_weights
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.helpers import with_cache
from tests.reference.rows import slow_row_statistics

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def ids():
    generator = torch.Generator().manual_seed(
        1
    )  # no token twice in a row: without positions its two keys would be equally strong
    return torch.stack([2 + torch.randperm(94, generator=generator)[:24] for _ in range(2)])


def own(model, name="eager"):
    """A copy that uses transformers' own attention."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation(name)
    return twin


@torch.no_grad()
def logits(model, ids, **options):
    return model(input_ids=ids, **options).logits


@pytest.mark.parametrize("pad", ["none", "left", "right"])
def test_logits_equal_eager(model, ids, pad):
    mask = torch.ones_like(ids)
    if pad == "left":
        mask[0, :5] = 0
    if pad == "right":
        mask[0, -5:] = 0
    options = {} if pad == "none" else {"attention_mask": mask}
    expected = logits(own(model), ids, **options)
    with attached(model):
        got = logits(model, ids, **options)
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], **TOLERANCE)


@torch.no_grad()
def cached_logits(model, ids):
    """Prompt, a block of new tokens over the past, one single token."""
    parts, past = [], None
    for start, stop in ((0, 10), (10, 23), (23, 24)):
        out = model(input_ids=ids[:, start:stop], **with_cache(past), use_cache=True)
        parts, past = [*parts, out.logits], out.past_key_values
    return torch.cat(parts, dim=1)


def test_logits_equal_eager_over_a_cache(model, ids):
    with attached(model):
        got = cached_logits(model, ids)
    torch.testing.assert_close(got, cached_logits(own(model), ids), **TOLERANCE)


def test_rows_that_nobody_reads_can_be_left_out(model, ids):
    """The last layer's output is computed for four positions; their logits and a later pass over the cache stay what they are."""
    expected = logits(own(model), ids)
    with attached(model):
        with torch.no_grad(), last_rows(model, 4):
            out = model(input_ids=ids[:, :18], use_cache=True, logits_to_keep=4)
        torch.testing.assert_close(out.logits, expected[:, 14:18], **TOLERANCE)
        later = logits(model, ids[:, 18:], **with_cache(out.past_key_values))
    torch.testing.assert_close(later, expected[:, 18:], **TOLERANCE)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow
def test_generation_equals_eager(model, ids):
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    expected = own(model).generate(ids, **options)
    with attached(model):
        got = model.generate(ids, **options)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("pad", [False, True])
def test_row_statistics_equal_eager_weights(model, ids, pad):
    mask = torch.ones_like(ids)
    if pad:
        mask[1, :6] = 0
    spans = [(7, 11), (0, 24), (20, 23)]
    with torch.no_grad():
        weights = own(model)(input_ids=ids, attention_mask=mask, output_attentions=True).attentions
    with observe(model, rows=3, spans=spans) as seen, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    layers = as_model(model).modules
    weights = [w for w in weights if w is not None]
    assert len(weights) == len(layers) == len(seen.by_layer)
    for layer, weight in zip(layers, weights, strict=True):
        argmax, mass = slow_row_statistics(weight[:, :, -3:], spans)
        torch.testing.assert_close(seen.by_layer[layer].mass, mass, **TOLERANCE)
        assert torch.equal(seen.by_layer[layer].argmax, argmax)


def some_heads(hf):
    model = as_model(hf)
    layers = list(model.modules)
    return HeadSet.of([(layers[0], 1), (layers[0], 6), (layers[-1], 0), (layers[-1], 3)], model.heads.shape)


@pytest.mark.parametrize("mode", ["zero", "uniform"])
def test_ablation_equals_edited_weights(model, ids, mode):
    heads = some_heads(model)
    twin = own(model)
    silence_in_weights(twin, heads, mode)
    with ablate(model, heads, mode=mode):
        got = logits(model, ids)
    torch.testing.assert_close(got, logits(twin, ids), **TOLERANCE)
    assert (got - logits(model, ids)).abs().max() > 1e-3


def test_ablation_variants_per_batch_row(model, ids):
    heads = some_heads(model)
    sets = [HeadSet((), heads.shape), heads]
    both = ids[:1].expand(2, -1)
    with ablate(model, sets, mode="zero"):
        got = logits(model, both)
    with ablate(model, heads, mode="zero"):
        alone = logits(model, ids[:1])
    torch.testing.assert_close(got[0], logits(model, ids[:1])[0], **TOLERANCE)
    torch.testing.assert_close(got[1], alone[0], **TOLERANCE)


@pytest.mark.parametrize("mode", ["zero", "uniform", "mean", "resample"])
def test_scope_answer_changes_only_the_answer_rows(model, ids, mode):
    heads = some_heads(model)
    filling = {"mean": {"means": head_means(model, [ids])}, "resample": {"samples": head_samples(model, [ids], 7)}}.get(mode, {})
    before = logits(model, ids)
    with ablate(model, heads, mode=mode, scope="answer", answer_from=20, **filling):
        got = logits(model, ids)
    torch.testing.assert_close(got[:, :20], before[:, :20], **TOLERANCE)
    assert (got[:, 20:] - before[:, 20:]).abs().max() > 1e-4


@pytest.mark.parametrize("mode", ["zero", "uniform"])
def test_the_scope_counts_positions_also_over_caches_that_drop_old_ones(model, ids, mode):
    """transformers' own caches keep only what a sliding window sees, so keys do not tell where a row stands."""
    heads = some_heads(model)
    with ablate(model, heads, mode=mode, scope="answer", answer_from=20), torch.no_grad():
        whole = logits(model, ids)
        cache, parts = None, []
        for piece in (ids[:, :18], ids[:, 18:22], ids[:, 22:23], ids[:, 23:]):
            out = model(piece, **with_cache(cache), use_cache=True)
            cache = out.past_key_values
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-3)


class Tap:
    """Look: the latest outputs of all layers."""

    def __init__(self):
        self.outputs = {}

    def look(self, call):
        self.outputs[call.layer] = call.output


def test_resampling_puts_an_output_of_the_other_text_in_place(model, ids):
    wrapped = as_model(model)
    head, tap = HeadId(next(iter(wrapped.modules)), 2), Tap()
    samples = head_samples(model, [ids], 5, seed=3)
    assert samples.shape == (5, *wrapped.heads.shape, wrapped.heads.head_dim)
    with attached(model) as plan, plan.running(tap):
        logits(model, ids)
        own = tap.outputs[head.layer][:, 1:].flatten(0, 1).float()  # all places but the first ones
        for sample in samples[:, head.layer]:  # all heads of a sample stand at one place
            assert (own - sample).abs().amax(dim=(1, 2)).min() < 1e-5
        with ablate(model, HeadSet((head,), wrapped.heads.shape), "resample", samples=samples):
            logits(model, ids)
    for place in range(24):
        put = tap.outputs[head.layer][:, place, 2]
        torch.testing.assert_close(put, samples[place % 5, head.layer, 2].to(put.dtype).expand(2, -1))
    assert torch.equal(samples, head_samples(model, [ids], 5, seed=3))
    assert not torch.equal(samples, head_samples(model, [ids], 5, seed=4))
    assert len(head_samples(model, [ids, ids[:1, :1]], 1000)) == 2 * 23


def test_mean_ablation_puts_the_mean_in_place(model, ids):
    wrapped = as_model(model)
    head, tap = HeadId(next(iter(wrapped.modules)), 2), Tap()
    means = head_means(model, [ids])
    with attached(model) as plan, plan.running(tap), ablate(model, HeadSet((head,), wrapped.heads.shape), "mean", means=means):
        logits(model, ids)
    outputs = tap.outputs
    torch.testing.assert_close(outputs[head.layer][:, :, 2], means[head.layer, 2].expand(2, 24, -1))
    assert not torch.allclose(outputs[head.layer][:, :, 3], means[head.layer, 3].expand(2, 24, -1))


def test_steering_raises_the_mass_of_a_span(model, ids):
    wrapped = as_model(model)
    layer = list(wrapped.modules)[-1]
    heads = HeadSet.of([(layer, 2)], wrapped.heads.shape)
    before = logits(model, ids)
    with steer(model, heads, [(18, 21)], bias=0.0):
        torch.testing.assert_close(logits(model, ids), before, **TOLERANCE)
    with steer(model, heads, [(18, 21)], bias=4.0):
        after = logits(model, ids)
    torch.testing.assert_close(after[:, :18], before[:, :18], **TOLERANCE)
    assert (after[:, 21:] - before[:, 21:]).abs().max() > 1e-4


def test_model_is_bit_identical_after_all_blocks(model, ids):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, attributes = model.config.to_dict(), {n: sorted(vars(m)) for n, m in model.named_modules()}
    implementation, before = model.config._attn_implementation, logits(model, ids)
    heads = some_heads(model)
    with observe(model), ablate(model, heads, mode="uniform"), steer(model, heads, [(1, 3)], 2.0):
        assert model.config._attn_implementation == "headwise"
        logits(model, ids)
    with pytest.raises(RuntimeError, match="inside"), observe(model):
        raise RuntimeError("inside")
    assert model.config._attn_implementation == implementation
    assert model.config.to_dict() == config
    assert {n: sorted(vars(m)) for n, m in model.named_modules()} == attributes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model, ids), before)


def test_a_pass_that_goes_around_our_attention_is_refused(model, ids):
    heads = HeadSet((HeadId(min(as_model(model).modules), 0),), as_model(model).heads.shape)
    before = model.config._attn_implementation
    with ablate(model, heads):
        model.set_attn_implementation("eager")  # as a library that brings its own attention
        with pytest.raises(HeadwiseError, match="did not run headwise's attention"):
            model(input_ids=ids)
    assert model.config._attn_implementation == before
    with attached(model):  # nothing to see or to change: nothing to refuse
        model.set_attn_implementation("eager")
        model(input_ids=ids)


def test_heads_of_another_model_are_refused(model):
    refused = pytest.raises(ValueError, match=r"belong to a model of 2 layers x 3 heads, but .* has 4 x 8")
    with refused, ablate(model, HeadSet.of([(1, 1)], (2, 3))):
        pass


@pytest.mark.parametrize(
    ("name", "reason"), [("mamba", "without attention heads"), ("deepseek_v3", "MLA"), ("unheard_of", "known: cohere2")]
)
def test_families_that_cannot_work_are_refused_by_name(name, reason):
    with pytest.raises(UnsupportedModelError, match=reason):
        family_of(name)
