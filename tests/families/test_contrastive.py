"""Contrastive losses on chosen heads in every family, against loops over eager attention and over the captured vectors."""

import math

import pytest
import torch

from headwise.attention.capture import capture
from headwise.attention.depth import run_to_layer
from headwise.heads import HeadwiseError
from headwise.maths.contrastive import Marked
from headwise.methods.mudaf.loss import MudafLoss
from headwise.methods.query.loss import RankLoss
from headwise.models.model import as_model
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.reference import mudaf as slow

LENGTH = 22
IDS = torch.randint(2, 96, (1, LENGTH), generator=torch.Generator().manual_seed(8))
QUESTION = Marked(0, (19, LENGTH), ((1, 6), (6, 8), (9, 14)), (False, True, False))


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def model(request):
    return tiny_model(request.param)


def heads_of(model):
    """Three heads of the first and the last layer that see the whole text; two of one KV head where there are groups."""
    layers = as_model(model).heads.full_layers
    if not layers:
        pytest.skip("all layers have a sliding window")
    return [(layers[0], 6), (layers[-1], 1), (layers[-1], 2)]


def test_losses_are_those_of_eager_attention(model):
    heads = heads_of(model)
    weights = slow.attention(model, IDS[0].tolist())
    with capture(model) as seen:
        model(input_ids=IDS, use_cache=False)
    masses = [[float(weights[layer][h, -1, start:stop].sum()) for start, stop in QUESTION.passages] for layer, h in heads]
    wanted = [slow.info_nce([math.log(mass) for mass in of_head], QUESTION.gold) for of_head in masses]
    assert MudafLoss(heads, pool="lse")(seen, [QUESTION]).loss.item() == pytest.approx(sum(wanted) / 3, rel=2e-3)
    masses, value = slow.ranking(weights, heads, QUESTION.query, QUESTION.passages, QUESTION.gold, 0.1)
    torch.testing.assert_close(RankLoss(heads).scores(seen, QUESTION), torch.tensor(masses), atol=1e-5, rtol=1e-3)
    assert RankLoss(heads)(seen, [QUESTION]).loss.item() == pytest.approx(value, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("sim", ["per_head", "concat"])
def test_cosines_are_those_of_the_vectors_that_attention_uses(model, sim):
    heads = heads_of(model)
    with capture(model) as seen:
        model(input_ids=IDS, use_cache=False)
    group = as_model(model).heads.shape[1] // next(iter(seen.by_layer.values())).keys[0].shape[1]
    question = {layer: (one.query[0, :, -1].double(), one.scaling) for layer, one in seen.by_layer.items()}
    passages = [{layer: one.keys[0][0, :, start:stop].double() for layer, one in seen.by_layer.items()} for start, stop in QUESTION.passages]
    wanted = slow.mudaf(heads, group, question, passages, QUESTION.gold, sim=sim)
    assert MudafLoss(heads, sim=sim)(seen, [QUESTION]).loss.item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", ["mean", "lse", "rank"])
def test_a_pass_that_ends_at_the_deepest_head_trains_what_a_whole_one_does(model, name):
    heads = heads_of(model)
    loss, found = RankLoss(heads) if name == "rank" else MudafLoss(heads, pool=name), []
    for run in (lambda: model(input_ids=IDS, use_cache=False), lambda: run_to_layer(model, loss.deepest, IDS, gradients=True)):
        with capture(model) as seen:
            run()
        loss(seen, [QUESTION]).loss.backward()
        found.append({part: p.grad.clone() for part, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0})
        model.zero_grad(set_to_none=True)
    assert found[0].keys() == found[1].keys()
    assert any("embed" in part or "wte" in part for part in found[0])  # the way leads down to the tokens
    for part, gradient in found[0].items():
        torch.testing.assert_close(found[1][part], gradient, atol=1e-4, rtol=2e-3)


def test_heads_that_do_not_see_the_passages_are_refused(model):
    windows = [layer for layer, window in as_model(model).heads.windows.items() if window is not None]
    with capture(model) as seen, torch.no_grad():
        model(input_ids=IDS, use_cache=False)
        for layer in range(as_model(model).heads.shape[0]):
            for loss in (MudafLoss([(layer, 0)]), MudafLoss([(layer, 0)], pool="lse"), RankLoss([(layer, 0)])):
                if layer in as_model(model).heads.full_layers:
                    assert loss(seen, [QUESTION]).rows == 1
                    continue
                message = "sliding window" if layer in windows else f"no attention head L{layer}H0"
                with pytest.raises(HeadwiseError, match=message) as error:
                    loss(seen, [QUESTION])
                assert "\n" not in str(error.value)
