"""Gradients through our attention function are those of transformers' eager attention, whatever steps are open."""

import copy

import pytest
import torch

from headwise.attention import ablate, capture, observe, steer
from headwise.attention.plan import attached
from headwise.heads import HeadSet
from headwise.models.model import as_model
from headwise.models.weights import silence_in_weights
from headwise.testing.tiny import TINY_FAMILIES, tiny_model

CLOSE = {"atol": 1e-4, "rtol": 2e-3}  # qwen3_next's linear attention differs by 5e-5 from one pass to the next
NO_DOUBLE = ("mixtral", "qwen3_moe", "qwen3_next", "gpt_oss")  # their experts' kernel takes no float64


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def ids():
    return torch.randint(2, 96, (2, 20), generator=torch.Generator().manual_seed(1))


def gradients(hf, loss):
    hf.zero_grad(set_to_none=True)
    loss.backward()
    found = {name: p.grad.clone() for name, p in hf.named_parameters() if p.grad is not None}
    hf.zero_grad(set_to_none=True)
    return found


def eager(model):
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    return twin


def assert_same(got, expected, but=()):
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        if name not in but:
            torch.testing.assert_close(got[name], gradient, **CLOSE, msg=lambda text, name=name: f"{name}: {text}")


def loss_of(hf, ids, mask=None):
    logits = hf(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[1, 4:-1], ids[1, 5:])  # behind the padding


@pytest.mark.slow
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_equal_eager_while_heads_are_observed(model, ids, padded):
    mask = torch.ones_like(ids)
    mask[1, :4] = 1 - int(padded)
    twin = eager(model)
    expected = gradients(twin, loss_of(twin, ids, mask))
    with observe(model, rows=3, spans=[(0, 4)]):
        assert_same(gradients(model, loss_of(model, ids, mask)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["zero", "uniform"])
def test_gradients_of_an_ablated_model_are_those_of_edited_weights(model, ids, mode):
    layers = list(as_model(model).modules)
    heads = HeadSet.of([(layers[0], 1), (layers[-1], 6)], as_model(model).heads.shape)
    twin = eager(model)
    silence_in_weights(twin, heads, mode)
    expected = gradients(twin, loss_of(twin, ids))
    with ablate(model, heads, mode=mode):
        got = gradients(model, loss_of(model, ids))
    # The projections that were edited get gradients of their own there; everything below and above them must agree.
    edited = [name for name in expected if any(part in name for part in EDITED[mode])]
    assert len(edited) < len(expected)
    assert_same(got, expected, but=edited)


EDITED = {
    "zero": ("o_proj", "c_proj", "attention.dense", "linear_attn"),
    "uniform": ("q_proj", "qkv_proj", "query_key_value", "c_attn", "q_norm"),
}


def test_a_steered_model_has_the_gradient_of_its_own_output(model, ids):
    """Against differences of the loss along a random direction, which know nothing of how it is computed."""
    if model.config.model_type in NO_DOUBLE:
        pytest.skip("needs float64")
    twin = copy.deepcopy(model).double()
    layer = as_model(twin).modules[min(as_model(twin).modules)]
    parameter = next(p for p in layer.parameters() if p.ndim == 2)
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
    with steer(twin, None, [(2, 6)], bias=1.5):
        slope = float((torch.autograd.grad(loss_of(twin, ids), parameter)[0] * direction).sum())
        ends = []
        with torch.no_grad():
            for step in (1e-4, -2e-4):
                parameter.add_(direction, alpha=step)
                ends.append(float(loss_of(twin, ids)))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-2, abs=1e-4)


def test_a_loss_on_attention_reaches_the_weights_as_eager_attention_does(model, ids):
    """The mass that the last rows of every head pay to a span."""
    twin = eager(model)
    weights = [w for w in twin(input_ids=ids, output_attentions=True, use_cache=False).attentions if w is not None]
    expected = gradients(twin, torch.stack([w[:, :, -3:, 2:7].sum(dim=-1) for w in weights]).square().sum())
    with observe(model, rows=3, spans=[(2, 7)]) as seen:
        model(input_ids=ids, use_cache=False)
        loss = torch.stack([one.mass for one in seen.by_layer.values()]).square().sum()
        assert_same(gradients(model, loss), expected)


def test_queries_and_keys_are_captured_with_their_gradients(model, ids):
    with capture(model) as seen:
        model(input_ids=ids, use_cache=False)
        layer, last = max(seen.by_layer.items())
        assert last.query.shape[:3] == (2, 8, 20)
        loss = last.query.square().mean() + last.keys[0].square().mean()
        found = gradients(model, loss)
        model(input_ids=ids, use_cache=False)
        out = seen.by_layer[layer].output
        assert out.requires_grad
    assert any(f"{layer - 1}." in name for name in found)
    assert not any("lm_head" in name and "embed" not in name for name in found)


def test_without_gradients_nothing_is_kept(model, ids):
    with torch.no_grad(), observe(model, spans=[(0, 4)]) as seen, steer(model, None, [(1, 3)], 1.0), capture(model) as own:
        model(input_ids=ids)
    assert not any(one.lse.requires_grad or one.mass.requires_grad for one in seen.by_layer.values())
    assert not any(one.output.requires_grad for one in own.by_layer.values())
    with attached(model), torch.inference_mode():
        model(input_ids=ids)
