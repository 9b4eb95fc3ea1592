"""`attribute`: what a block leaves behind, what it stores, what it can be combined with, what it refuses."""

import copy
import gc
import weakref
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from headwise.attention import ablate, observe, rules, steer
from headwise.attention.attribute import DEFAULT, RULES, attribute
from headwise.attention.rules import PATENT_NOTICE, recognised
from headwise.attention.tail import last_rows
from headwise.caches.kept_cache import compress
from headwise.heads import HeadSet, HeadwiseError, UnsupportedModelError
from headwise.methods.snapkv.press import SnapKV
from headwise.models.model import as_model
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache

IDS = torch.randint(2, 96, (2, 24), generator=torch.Generator().manual_seed(1))
HEADS = HeadSet.of([(1, 2), (2, 5)], (4, 8))


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def explained(model, rule=DEFAULT, ids=IDS, value=lambda logits: logits[:, -1, 5], **options):
    with attribute(model, rule, **options) as seen:
        seen.explain(value(model(input_ids=ids).logits))
    return seen


def state_of(hf):
    """Everything that a block could leave behind."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training, sorted(vars(m))) for m in hf.modules()]
    flags = [(name, p.requires_grad, p.grad is None, p.data_ptr()) for name, p in hf.named_parameters()]
    return hooks, flags, hf.config.to_json_string(), hf.config._attn_implementation, [type(m).forward for m in hf.modules()]


@pytest.mark.parametrize("raised", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mixtral", "gpt2"])
def test_afterwards_the_model_is_bit_for_bit_what_it_was(family, raised):
    hf = tiny_model(family)
    next(hf.parameters()).requires_grad_(False)  # one flag that is not like the others
    weights, before = copy.deepcopy(hf.state_dict()), state_of(hf)
    with torch.no_grad():
        logits = hf(input_ids=IDS).logits
    for rule in RULES:
        try:
            with attribute(hf, rule, sources="weights") as seen:
                out = hf(input_ids=IDS)
                seen.explain(out.logits[:, -1, 5])
                assert not any(p.requires_grad for p in hf.parameters())
                if raised:
                    raise KeyError
        except KeyError:
            pass
        assert state_of(hf) == before
    with torch.no_grad():
        assert torch.equal(hf(input_ids=IDS).logits, logits)
    assert all(torch.equal(weight, weights[name]) for name, weight in hf.state_dict().items())


def test_a_refused_block_leaves_nothing_behind():
    hf = tiny_model("llama")
    hf.model.layers[2].mlp.act_fn = nn.Mish()
    before = state_of(hf)
    with pytest.raises(UnsupportedModelError, match="the activation Mish has no closed form"), attribute(hf, "attnlrp"):
        pass
    assert state_of(hf) == before
    explained(hf, "gim")


@pytest.mark.parametrize("rule", RULES)
def test_values_inside_are_those_outside(model, rule):
    with torch.no_grad():
        right = model(input_ids=IDS).logits
    with attribute(model, rule, sources="weights"):
        assert torch.equal(model(input_ids=IDS).logits, right)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("rule", RULES)
def test_no_attention_matrix_is_kept(family, rule):
    hf = tiny_model(family)
    ids, sizes = torch.randint(2, 96, (1, 200), generator=torch.Generator().manual_seed(1)), []

    def pack(tensor):
        sizes.append(tensor.numel() if tensor.dtype != torch.bool else 0)  # one mask for all heads may be there
        return tensor

    with attribute(hf, rule, sources="weights") as seen, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = hf(input_ids=ids, logits_to_keep=1)
    assert len(sizes) > 20
    assert max(sizes) < 200 * 200 * 4  # of 8 heads
    del seen, out


@pytest.mark.parametrize("rule", ["gradient", "gim", "attnlrp"])
@pytest.mark.slow
def test_of_an_mlp_only_gate_and_up_are_kept(model, rule, monkeypatch):
    """The activation of the gate is made again on the way back; what comes of it is as if it had been kept."""

    def measured():
        made = []
        with attribute(model, rule) as seen, ExitStack() as undo:
            for layer in model.model.layers:
                hook = layer.mlp.act_fn.register_forward_hook(lambda *given: made.append(weakref.ref(given[2])))
                undo.callback(hook.remove)
            value = model(input_ids=IDS).logits[:, -1, 5]
            gc.collect()
            kept = [output() is not None for output in made]
            seen.explain(value)
        return kept, seen

    kept, seen = measured()
    with monkeypatch.context() as patch:
        patch.setattr(rules, "gated_product", lambda product, *_: product)
        otherwise, wanted = measured()
    assert [kept, otherwise] == [[False] * 4, [True] * 4]
    assert_close(seen.heads, wanted.heads, rtol=1e-4, atol=1e-6)
    assert_close(seen.tokens, wanted.tokens, rtol=1e-4, atol=1e-6)


def test_the_plain_gradient_is_that_of_the_untouched_model(model):
    seen = explained(model, "gradient")
    twin = copy.deepcopy(model)
    embeddings = twin.get_input_embeddings()(IDS).detach().requires_grad_(True)
    outputs = {}
    for layer, module in as_model(twin).modules.items():
        module.o_proj.register_forward_pre_hook(lambda _, inputs, layer=layer: outputs.setdefault(layer, inputs[0]).retain_grad())
    twin(inputs_embeds=embeddings, use_cache=False).logits[:, -1, 5].sum().backward()
    assert_close(seen.tokens, (embeddings * embeddings.grad).sum(dim=-1).detach())
    own = torch.stack([(z * z.grad).detach().view(2, 24, 8, 16) for z in outputs.values()], dim=1)
    assert_close(seen.signed, own.sum(dim=(2, 4)))
    assert_close(seen.heads, own.clamp(min=0).sum(dim=(2, 4)))


def test_signed_sources_sum_to_signed_heads(model):
    for rule in RULES:
        seen = explained(model, rule, sources="weights", positive="none")
        assert_close(seen.sources.sum(dim=-1), seen.signed * RULES[rule].product)
        assert bool((explained(model, rule, sources="weights", positive="token").sources == seen.sources.clamp(min=0)).all())


def test_rows_and_columns(model):
    last, all_rows = explained(model, sources="weights", rows="last"), explained(model, sources="weights")
    chosen = torch.zeros(2, 24, dtype=torch.bool)
    chosen[:, -1] = True
    assert_close(explained(model, sources="weights", rows=chosen).sources, last.sources)
    assert float((all_rows.sources - last.sources).min()) > -1e-6
    own = torch.zeros(2, 24, dtype=torch.bool)
    own[0, 3:6], own[1, 9] = True, True
    for columns, wanted in ((own, own), (torch.tensor([3, 9]), torch.isin(torch.arange(24), torch.tensor([3, 9])).expand(2, -1))):
        for rows, right in (("all", all_rows), ("last", last)):
            found = explained(model, sources="weights", rows=rows, columns=columns).sources
            assert_close(found, right.sources * wanted[:, None, None])
            assert float(found.sum()) > 0


def test_an_answer_is_explained_by_one_pass_and_a_pass_can_be_explained_again(model):
    def answer(logits):
        return logits[0, -4:-1].gather(-1, IDS[0, -3:, None]).sum()

    whole = explained(model, value=answer, sources="weights", positive="none")
    with attribute(model, sources="weights", positive="none") as seen:
        logits, parts = model(input_ids=IDS).logits, []
        for i in range(-4, -1):
            seen.explain(logits[0, i, IDS[0, i + 1]], again=True)
            parts.append((seen.tokens, seen.signed, seen.sources.clone()))
    for i, right in enumerate((whole.tokens, whole.signed, whole.sources)):
        assert_close(torch.stack([part[i] for part in parts]).sum(dim=0), right, atol=2e-6, rtol=1e-4)
    assert not whole.tokens[1].any()  # the other text was not asked about


def test_embeddings_may_be_given(model):
    embeddings = model.get_input_embeddings()(IDS)
    with attribute(model) as seen:
        seen.explain(model(inputs_embeds=embeddings).logits[:, -1, 5])
    right = explained(model)
    assert_close(seen.tokens, right.tokens)
    assert_close(seen.heads, right.heads)


def test_with_observe_and_ablate(model):
    with observe(model, rows=1, spans=[(0, 4)]) as alone, torch.no_grad():
        model(input_ids=IDS)
    for rule in RULES:
        with observe(model, rows=1, spans=[(0, 4)]) as inside:
            seen = explained(model, rule)
        assert_close(inside.mass.detach(), alone.mass)
        right = explained(model, rule)
        assert torch.equal(seen.heads, right.heads)
        with ablate(model, HEADS):
            outer = explained(model, rule, sources="weights")
        with attribute(model, rule, sources="weights") as inner, ablate(model, HEADS):
            inner.explain(model(input_ids=IDS).logits[:, -1, 5])
        for found in (outer, inner):
            gone = found.heads[:, [1, 2], [2, 5]]
            assert not gone.any()
            assert int((found.heads == 0).sum()) == 4
        assert_close(outer.heads, inner.heads)
        assert_close(outer.tokens, inner.tokens)


def test_steering_is_refused_where_it_would_be_wrong(model):
    assert explained(model, "gradient").heads.isfinite().all()
    with steer(model, None, [(2, 6)], bias=1.0):
        explained(model, "gradient")
        refused(lambda: explained(model, "gim"), "rule 'gim' cannot be combined with steer")
        refused(
            lambda: explained(model, "gradient", sources="weights"), "relevance per source token cannot be combined with steer"
        )


def refused(action, *parts, kind=HeadwiseError):
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_passes_that_cannot_be_explained(model):
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            refused(lambda: explained(model), "needs gradients; run it outside of torch.no_grad() and torch.inference_mode()")
    training = tiny_model("llama").train()
    refused(lambda: explained(training), "call model.eval()")
    assert training.training
    cache = model(input_ids=IDS, use_cache=True).past_key_values
    with attribute(model):
        refused(lambda: model(input_ids=IDS, **with_cache(cache)), "24 tokens stand in a cache already")
        refused(lambda: model.model(input_ids=IDS), "a pass of the whole model")
        refused(lambda: model(input_ids=IDS, attention_mask=torch.ones(2, 1, 24, 24)), "attention_mask [batch, tokens]")
    with compress(model, SnapKV(budget=20)) as kept:
        with torch.no_grad():
            kept.prefill(IDS[:1])
        with attribute(model):
            refused(lambda: model(input_ids=IDS[:1, :4], **with_cache(kept)), "24 tokens stand in a cache already")
    with last_rows(model, 1), attribute(model):
        refused(lambda: model(input_ids=IDS), "attends in its own way")


def test_what_cannot_be_explained(model):
    with attribute(model) as seen:
        refused(lambda: seen.explain(torch.ones(())), "run the model once inside")
        out = model(input_ids=IDS)
        refused(lambda: seen.heads, "call explain(value) first")
        refused(lambda: seen.explain(out.logits), "a scalar tensor, or one value per row")
        refused(lambda: seen.explain(3.0), "a scalar tensor, or one value per row")
        refused(lambda: seen.explain(torch.ones((), requires_grad=True)), "does not depend on the latest pass")
        refused(lambda: seen.explain(torch.ones(())), "does not depend on the latest pass")
        seen.explain(out.logits[:, -1, 5])
        refused(lambda: seen.explain(out.logits[:, -1, 5]), "explained already")
        refused(lambda: seen.sources, "sources='weights'")
        assert seen.heads.shape == (2, 4, 8)
    assert seen.heads.shape == (2, 4, 8)
    refused(lambda: seen.explain(out.logits[:, -1, 5]), "run the model once inside")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"rule": ["gim"]}, "unknown rule of attribution ['gim']"),
        ({"rule": "lrp"}, "unknown rule of attribution 'lrp'; use gradient, gim, cp_lrp, attnlrp"),
        ({"sources": "all"}, "unknown sources 'all'"),
        ({"rows": "first"}, "rows must be all, last, or a bool tensor"),
        ({"rows": torch.ones(3)}, "rows must be all, last, or a bool tensor"),
        ({"positive": "both"}, "unknown positive part 'both'"),
        ({"columns": [1]}, "columns must be a tensor"),
    ],
)
def test_unknown_options(model, options, part):
    def opened():
        with attribute(model, **options):
            pass

    refused(opened, part)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"rows": torch.ones(2, 23, dtype=torch.bool)}, "rows do not fit a pass of 2 rows x 24 tokens; got the shape [2, 23]"),
        ({"rows": torch.ones(3, 24, dtype=torch.bool)}, "rows do not fit a pass of 2 rows x 24 tokens; got the shape [3, 24]"),
        ({"columns": torch.ones(23, dtype=torch.bool)}, "columns do not fit a pass of 2 rows x 24 tokens; got the shape [23]"),
        ({"columns": torch.ones(3, 24, dtype=torch.bool)}, "columns do not fit"),
        ({"columns": torch.tensor([3, 24])}, "columns do not fit a pass of 2 rows x 24 tokens; got [3, 24]"),
    ],
)
def test_rows_and_columns_of_another_pass(model, options, part):
    refused(lambda: explained(model, sources="weights", **options), part)


def test_only_the_pass_needs_gradients(model):
    right = explained(model)
    for mode in (torch.no_grad, torch.inference_mode):
        with attribute(model) as seen:
            value = model(input_ids=IDS).logits[:, -1, 5]
            with mode():
                seen.explain(value)
        assert torch.equal(seen.heads, right.heads)


def test_one_block_at_a_time(model):
    with attribute(model):
        refused(lambda: explained(model), "open already")
    explained(model)


def test_norms_are_known_by_what_they_compute():
    assert not recognised(tiny_model("llama").model.norm).centred
    assert recognised(nn.LayerNorm(8)).centred
    gemma = tiny_model("gemma2").model.norm
    assert torch.equal(recognised(gemma).gain, 1 + gemma.weight)
    for odd in (nn.GroupNorm(2, 8), nn.Linear(8, 8), nn.BatchNorm1d(1)):
        refused(lambda odd=odd: recognised(odd), "of no kind that a rule of attribution knows", kind=UnsupportedModelError)


def test_a_norm_whose_weights_are_not_finite_is_told_as_such():
    for name, value in (("weight", torch.nan), ("bias", torch.inf)):
        norm = nn.LayerNorm(8)
        with torch.no_grad():
            getattr(norm, name)[3] = value
        refused(lambda norm=norm: recognised(norm), "weights of a norm LayerNorm are not finite")


def test_no_patented_rule_is_the_default():
    assert not RULES[DEFAULT].patented
    assert {name for name, rule in RULES.items() if rule.patented} == {"cp_lrp", "attnlrp"}
    assert "gives no rights under patents" in PATENT_NOTICE


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.slow
def test_nothing_of_a_pass_outlives_its_block(rule):
    """A hook that holds its own output is a circle through autograd that the garbage collector does not see; a long run grew to 16 GB."""
    import gc

    model = tiny_model("llama")

    def once():
        with attribute(model, rule) as seen:
            seen.explain(model(input_ids=torch.arange(2, 14)[None]).logits[0, -1].max())

    once()
    gc.collect()
    before = sum(type(thing) is torch.Tensor for thing in gc.get_objects())
    for _ in range(3):
        once()
    gc.collect()
    assert sum(type(thing) is torch.Tensor for thing in gc.get_objects()) <= before
