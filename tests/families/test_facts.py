"""For every family: each declared path exists, and each declared fact is what the transformers module does."""

import pytest
import torch
from torch.testing import assert_close

from headwise.attention.plan import attached
from headwise.models.families import FAMILIES, PARTS
from headwise.models.model import ATTENTION_PARTS, as_model, follow
from headwise.testing.tiny import CONFIGS, TINY_FAMILIES, tiny_model

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
# Numbers that no default hides: a fact that is not read, or not used, changes the result.
ODD = {
    "embedding_scale": 3.0,
    "residual_scale": 0.7,
    "logit_scale": 0.3,
    "logit_divisor": 5.0,
    "logit_cap": 1.5,
    "attention_cap": 2.0,
}
SAME_CODE = {"gemma3": "gemma3_text"}  # no tiny model of its own


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    family = FAMILIES[request.param]
    fields = {getattr(family, name): value for name, value in ODD.items() if getattr(family, name)}
    return as_model(tiny_model(request.param, **fields))


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, 96, (2, 12), generator=torch.Generator().manual_seed(3))


class Tapped:
    """Input and output of modules in one pass."""

    def __init__(self, model, modules, ids):
        self.inputs, self.outputs = {}, {}
        handles = [module.register_forward_hook(self._keep(name), with_kwargs=True) for name, module in modules.items()]
        with torch.no_grad():
            self.result = model.hf(input_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()

    def _keep(self, name):
        def hook(_, args, kwargs, output):
            self.inputs[name] = args[0] if args else kwargs["hidden_states"]
            self.outputs[name] = output[0] if isinstance(output, tuple) else output

        return hook


def test_every_family_has_a_tiny_model():
    assert set(FAMILIES) == set(CONFIGS) | set(SAME_CODE)


def test_every_declared_path_exists_and_nothing_undeclared_is_there(model):
    for name in PARTS:
        layers = list(model.modules) if name in ATTENTION_PARTS else range(model.heads.shape[0])
        for layer in layers:
            part = model.part(name, layer)
            assert (part is None) == (not getattr(model.family, name))
    assert model.final_norm is follow(model.hf, model.family.final_norm)
    declared = {getattr(model.family, name) for name in PARTS if name not in ATTENTION_PARTS}
    for layer in model.layers:
        assert {name for name, _ in layer.named_children() if "norm" in name or name.startswith("ln_")} <= declared
    inside = {getattr(model.family, name) for name in ATTENTION_PARTS}
    for module in model.modules.values():
        assert {name for name, _ in module.named_children() if "norm" in name} <= inside
        assert {name for name, _ in module.named_parameters(recurse=False)} <= inside


def test_logits_are_the_readout_of_the_final_norm(model, ids):
    seen = Tapped(model, {"last": model.layers[-1], "norm": model.final_norm}, ids)
    assert_close(seen.inputs["norm"], seen.outputs["last"])
    assert_close(model.readout(seen.outputs["norm"]), seen.result.logits, **TOLERANCE)
    with torch.no_grad():
        assert_close(model.hf.base_model(input_ids=ids).last_hidden_state, seen.outputs["norm"])


def test_the_first_layer_reads_the_scaled_embedding(model, ids):
    seen = Tapped(model, {"embedding": model.hf.get_input_embeddings(), "first": model.layers[0]}, ids)
    expected = seen.outputs["embedding"] * model.embedding_scale
    if model.family.position_table:
        expected = expected + follow(model.hf, model.family.position_table).weight[: ids.shape[1]]
    assert_close(seen.inputs["first"], expected, **TOLERANCE)


def test_layers_add_what_the_declared_parts_give(model, ids):
    """Out - in = scale * (attention + MLP), each behind its norm, if it has one; the norms in front feed them."""
    for layer, attention in model.modules.items():
        parts = {name: model.part(name, layer) for name in PARTS if name not in ATTENTION_PARTS}
        parts = {name: part for name, part in parts.items() if part is not None}
        seen = Tapped(model, parts | {"attention": attention, "layer": model.layers[layer]}, ids)
        added = 0
        for part in ("attention", "mlp"):
            end = f"{part}_end_norm"
            if end in parts:
                assert_close(seen.inputs[end], seen.outputs[part].view_as(seen.inputs[end]))
            added = added + seen.outputs[end if end in parts else part].view_as(seen.inputs["layer"])
            if f"{part}_norm" in parts:
                assert_close(seen.inputs[part], seen.outputs[f"{part}_norm"])
        assert_close(seen.outputs["layer"] - seen.inputs["layer"], model.residual_scale * added, **TOLERANCE)


def test_attention_gets_the_declared_cap_sinks_and_norms(model, ids):
    calls = []
    norms = {(name, layer): model.part(name, layer) for name in ("query_norm", "key_norm") for layer in model.modules}
    norms = {key: norm for key, norm in norms.items() if norm is not None}
    with attached(model.hf) as plan:
        plan.taps.append(calls.append)
        seen = Tapped(model, norms, ids)
    assert [call.layer for call in calls] == list(model.modules)
    for call in calls:
        assert call.softcap == model.attention_cap
        sinks = model.part("sinks", call.layer)
        assert (call.sinks is None) == (sinks is None)
        assert sinks is None or torch.equal(call.sinks, sinks)
    assert set(seen.outputs) == set(norms)


@torch.no_grad()
def test_facts_change_the_result(ids):
    """Or the comparisons above would hold for facts that are left out."""
    for name in TINY_FAMILIES:
        family = FAMILIES[name]
        plain = tiny_model(name)(ids).logits
        for fact in (fact for fact in ODD if getattr(family, fact)):
            other = tiny_model(name, **{getattr(family, fact): ODD[fact] * 2})
            assert not torch.allclose(plain, other(ids).logits, atol=1e-4), (name, fact)
