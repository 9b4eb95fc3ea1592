"""For every family: gated attention against a full-matrix reference, a doubled batch, finite differences, and the model left as it was."""

import copy

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from headwise.attention.plan import attached, headwise_mask
from headwise.caches.gated import gated, streaming_loss
from headwise.caches.groups import Window
from headwise.heads import HeadwiseError
from headwise.models.model import as_model
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.helpers import with_cache
from tests.reference.gates import gated_attention

LENGTH, WINDOW = 40, Window(3, 6)
TOLERANCE = {"atol": 3e-5, "rtol": 1e-4}
NOTHING_TO_GATE = ["mistral"]  # a sliding window in every layer


@pytest.fixture(scope="module", params=[family for family in TINY_FAMILIES if family not in NOTHING_TO_GATE])
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def ids():
    return torch.randint(2, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def gates_of(hf, kind):
    model = as_model(hf)
    shape = model.heads.shape[0], model.heads.kv_heads
    if kind != "mixed":
        return torch.full(shape, float(kind))
    gates = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    gates[:, 0] = (gates[:, 0] > 0.5).float()  # some at the ends
    return gates


def run(model, ids, gates, mix):
    with gated(model, gates, WINDOW, mix) as gating:
        if mix == "teacher":
            with gating.teacher():
                model(input_ids=ids, use_cache=False)
        return model(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def reference(model, ids, gates, mix):
    twin, doubled = copy.deepcopy(model), mix == "teacher"
    AttentionInterface.register("gated_reference", gated_attention(twin, gates, *WINDOW, doubled))
    AttentionMaskInterface.register("gated_reference", headwise_mask)
    twin.set_attn_implementation("gated_reference")
    logits = twin(input_ids=torch.cat([ids, ids]) if doubled else ids, use_cache=False).logits
    return logits[-len(ids) :]


@torch.no_grad()
@pytest.mark.parametrize("mix", ["teacher", "self"])
def test_gates_of_one_are_the_plain_model(model, ids, mix):
    with attached(model):
        plain = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(run(model, ids, gates_of(model, 1), mix), plain)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("mix", ["teacher", "self"])
def test_gates_of_zero_are_the_lambda_mask(model, ids, mix):
    gates = gates_of(model, 0)
    got = run(model, ids, gates, mix)
    torch.testing.assert_close(got, reference(model, ids, gates, mix), **TOLERANCE)
    with torch.no_grad():
        assert (got - model(input_ids=ids, use_cache=False).logits).abs().max() > 1e-3


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("mix", ["teacher", "self"])
def test_gates_between_mix_as_the_paper_and_its_code_do(model, ids, mix):
    gates = gates_of(model, "mixed")
    torch.testing.assert_close(run(model, ids, gates, mix), reference(model, ids, gates, mix), **TOLERANCE)


@torch.no_grad()
def test_the_two_mixes_differ_where_errors_could_pass_on(model, ids):
    gates = gates_of(model, "mixed")
    difference = (run(model, ids, gates, "teacher") - run(model, ids, gates, "self")).abs().max()
    assert difference > 1e-3 or len(as_model(model).heads.full_layers) == 1


def test_gradients_reach_the_gates_of_layers_with_full_attention_only(model, ids):
    gates = gates_of(model, 0.5).requires_grad_()
    run(model, ids, gates, "self").square().mean().backward()
    full = as_model(model).heads.full_layers
    assert (gates.grad[full] != 0).all()
    assert gates.grad.count_nonzero() == len(full) * gates.shape[1]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_without_full_attention_are_reported(model):
    wrapped = as_model(model)
    with gated(model, gates_of(model, 1), WINDOW) as gating:
        assert gating.skipped == [layer for layer in range(4) if layer not in wrapped.heads.full_layers]


def test_the_model_is_bit_identical_after_the_block(model, ids):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, attributes = model.config.to_dict(), {n: sorted(vars(m)) for n, m in model.named_modules()}
    tracked = [parameter.requires_grad for parameter in model.parameters()]
    assert any(tracked)
    implementation = model.config._attn_implementation
    with torch.no_grad():
        before = model(input_ids=ids).logits
    gates = gates_of(model, 0.5).requires_grad_()
    run(model, ids, gates, "teacher").sum().backward()
    with pytest.raises(RuntimeError, match="inside"), gated(model, gates, WINDOW):
        raise RuntimeError("inside")
    assert model.config._attn_implementation == implementation
    assert model.config.to_dict() == config
    assert {n: sorted(vars(m)) for n, m in model.named_modules()} == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == tracked
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.parametrize("mix", ["teacher", "self"])
def test_gradients_equal_finite_differences(ids, mix):
    model, step = tiny_model("llama").double(), 2.0**-7
    gates = torch.full((4, 2), 0.5, requires_grad=True)
    gates.data += torch.arange(8).view(4, 2) / 32  # numbers that float32 holds exactly

    def loss(table):
        return run(model, ids, table, mix).square().mean()

    loss(gates).backward()
    for place in [(0, 0), (1, 1), (3, 0)]:
        moved = torch.zeros(4, 2)
        moved[place] = step
        with torch.no_grad():
            slope = (loss(gates + moved) - loss(gates - moved)) / (2 * step)
        torch.testing.assert_close(gates.grad[place], slope.float(), rtol=2e-3, atol=1e-7)


def test_gates_outside_are_clamped(ids):
    model = tiny_model("llama")
    with torch.no_grad():
        beyond = run(model, ids, gates_of(model, 1) + 0.25, "self")
        assert torch.equal(beyond, run(model, ids, gates_of(model, 1), "self"))


def test_the_loss_of_a_pattern(ids):
    model = tiny_model("gemma2")  # two of four layers have full attention
    texts = [(ids[:1], [30, 38]), (ids[1:], [20])]
    loss = streaming_loss(model, texts, WINDOW)
    full = torch.ones(2, dtype=torch.bool).numpy()
    assert loss(full) == 0
    expected = []
    for row, places in texts:
        with torch.no_grad(), gated(model, torch.tensor([[1.0, 1], [1, 1], [1, 1], [0, 0]]), WINDOW) as gating:
            teacher, student = gating.both(row, places)
            expected.append((teacher - student).square().mean())
    assert loss(torch.tensor([True, False]).numpy()) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    assert float(sum(expected)) > 0
    assert loss(torch.tensor([[True, True], [False, False]]).numpy()) == loss(torch.tensor([True, False]).numpy())


@pytest.mark.parametrize("family", NOTHING_TO_GATE)
def test_models_without_full_attention_are_refused(family):
    model = tiny_model(family)
    with pytest.raises(HeadwiseError, match="no layer with full attention"), gated(model, torch.ones(4, 2), WINDOW):
        pass
    assert model.config._attn_implementation != "headwise"


@pytest.mark.parametrize(
    ("gates", "window", "mix", "message"),
    [
        (torch.ones(4, 3), WINDOW, "self", r"needs float32 gates \[4, 2\]"),
        (torch.ones(4, 2, dtype=torch.bfloat16), WINDOW, "self", "needs float32 gates"),
        (torch.ones(4, 2), Window(0, 6), "self", "at least 1 token each"),
        (torch.ones(4, 2), Window(3, 0), "self", "at least 1 token each"),
        (torch.ones(4, 2), WINDOW, "official", "unknown mix 'official'; use teacher or self"),
    ],
)
def test_what_does_not_fit_is_refused(gates, window, mix, message):
    with pytest.raises(HeadwiseError, match=message), gated(tiny_model("llama"), gates, window, mix):
        pass


def test_passes_that_cannot_be_gated_are_refused(ids):
    model = tiny_model("llama")
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad(), gated(model, torch.ones(4, 2), WINDOW, "teacher") as gating:
        with pytest.raises(HeadwiseError, match="without padding"):
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        with pytest.raises(HeadwiseError, match=r"inside `with gating\.teacher"):
            model(input_ids=ids, use_cache=False)
        with gating.teacher():
            model(input_ids=ids, use_cache=False)
        model(input_ids=ids, use_cache=False)
        with pytest.raises(HeadwiseError, match=r"inside `with gating\.teacher"):
            model(input_ids=ids, use_cache=False)  # used up
        with gating.teacher():
            cache = model(input_ids=ids[:, :9], use_cache=True).past_key_values
        with pytest.raises(HeadwiseError, match=r"inside `with gating\.teacher"):
            model(input_ids=ids, use_cache=False)  # another text than the teacher's
        with pytest.raises(HeadwiseError, match="whole texts"):
            model(input_ids=ids[:, 9:], **with_cache(cache))
