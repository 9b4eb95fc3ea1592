"""Scales of heads that learn: gradients, what they learn about a planted head, exact resume, and merged checkpoints."""

import copy
import json
import math
from contextlib import ExitStack

import numpy as np
import pytest
import torch

import headwise as hw
from headwise.attention.plan import attached
from headwise.attention.scale import LearntScaling
from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadId, HeadSet
from headwise.models.model import Model, as_model
from headwise.models.weights import scale_in_weights
from headwise.prompts.prompt import Span
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise.train.examples import Prepared, TrainExample, collate
from headwise.train.lora import with_lora
from headwise.train.objectives import answer_loss
from headwise.train.options import Steps, Tuning
from headwise.train.scales import learn_scales, scales_to_folder
from headwise.train.trainer import COMPLETE
from tests.reference.scales import slow_gradients
from tests.unit.test_tuning import examples

FEW = {"steps": 6, "batch": 2, "accumulate": 2, "save_every": 2, "rate": 1e-2}


def ends_of(model):
    layers = list(model.modules)
    return [HeadId(layers[0], 1), HeadId(layers[0], 6), HeadId(layers[-1], 0), HeadId(layers[-1], 3)]


def gradients(model, heads, batch):
    factors = torch.ones(len(heads), requires_grad=True)
    with attached(model) as plan, plan.running(LearntScaling(heads, factors)):
        answer_loss(model.hf, batch).backward()
    model.hf.zero_grad()
    return factors.grad


@pytest.mark.parametrize("model_type", TINY_FAMILIES)
def test_gradients_are_those_of_the_definition(model_type):
    model, batch = as_model(tiny_model(model_type)), collate(examples(2))
    heads = ends_of(model)
    projections = {layer: model.part("output", layer) for layer in {head.layer for head in heads}}
    expected = slow_gradients(projections, heads, model.heads.head_dim, lambda: answer_loss(model.hf, batch))
    torch.testing.assert_close(gradients(model, heads, batch), expected, rtol=1e-3, atol=1e-6)
    assert float(expected.abs().min()) > 1e-6


def test_a_gradient_is_the_slope_of_the_loss():
    model, batch, step = as_model(tiny_model("llama").double()), collate(examples(2)), 1e-2
    for head, gradient in zip(ends_of(model), gradients(model, ends_of(model), batch).tolist(), strict=True):
        losses = []
        for factor in (1 - step, 1 + step):
            with hw.scale(model, [head], factor), torch.no_grad():
                losses.append(float(answer_loss(model.hf, batch)))
        assert (losses[1] - losses[0]) / (2 * step) == pytest.approx(gradient, rel=1e-2)


@pytest.mark.parametrize("model_type", TINY_FAMILIES)
@torch.no_grad()
def test_scales_in_the_weights_do_what_scaling_does(model_type):
    model = as_model(tiny_model(model_type))
    factors = dict(zip(ends_of(model), (0.4, 1.7, 0.0, 3.0), strict=True))
    ids, twin = torch.tensor([examples()[0].ids]), copy.deepcopy(model.hf)
    scale_in_weights(twin, factors)
    with ExitStack() as stack:
        for head, factor in factors.items():
            stack.enter_context(hw.scale(model, [head], factor))
        expected = model.hf(ids).logits
    with attached(model) as plan, plan.running(LearntScaling(list(factors), torch.tensor(list(factors.values())))):
        learnt = model.hf(ids).logits
    torch.testing.assert_close(learnt, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(twin(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert (expected - model.hf(ids).logits).abs().max() > 1e-3


def planted_examples(tokenizer, wrong):
    """Texts with a sentence of the planted task, its first words again, and the answer that stands in the text or another one."""
    needles, found = planted_task().needles, []
    for one, other in zip(needles, (*needles[1:], needles[0]), strict=True):
        prompt = tokenizer.encode(f"the river was slow and wide in that year. {one['needle']} so we took a boat. {one['answer_prefix']}")
        answer = tokenizer.encode(" " + (other if wrong else one)["answer"], add_special_tokens=False)
        found.append(TrainExample((*prompt, *answer), len(prompt), Span(len(prompt) - 3, len(prompt))))
    return found


@pytest.mark.slow
def test_a_head_that_copies_wrongly_becomes_quiet_and_one_that_copies_rightly_does_not():
    hf, tokenizer = planted_copier()
    model, head = Model(hf, tokenizer), HeadId(1, 2)
    learnt = {}
    for wrong in (True, False):
        scores, rows = learn_scales(model, planted_examples(tokenizer, wrong), Steps(steps=12, accumulate=2, rate=5e-2, warmup=0.0))
        learnt[wrong] = scores[head]
        assert rows[-1]["loss"] < rows[0]["loss"]
    assert learnt[True] < 0.8
    assert learnt[False] > 1
    assert np.nanargmin(scores.values) != 1 * 4 + 2


@pytest.mark.slow
def test_only_the_scales_of_the_chosen_heads_learn_and_the_model_stays_as_it_is():
    hf = tiny_model("qwen3_next")
    model = as_model(hf)
    hf.get_input_embeddings().weight.requires_grad_(False)
    before = {name: (value.clone(), value.requires_grad) for name, value in hf.named_parameters()}
    heads = ends_of(model)[:3]
    scores, rows = learn_scales(model, examples(), Steps(**FEW, checkpointing=True), HeadSet.of(heads, model.heads.shape))
    expected = np.full(model.heads.shape, np.nan)
    expected[list(model.modules)] = 1
    differs = np.argwhere((scores.values != expected) & ~np.isnan(expected)).tolist()
    assert differs == [list(head) for head in heads]
    assert np.isnan(scores.values).any(axis=1).sum() == model.heads.shape[0] - len(model.modules) > 0
    assert (scores.score, scores.provenance["scaled_heads"]) == ("scale", [str(head) for head in heads])
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name, value in hf.named_parameters():
        assert torch.equal(value, before[name][0]), name
        assert value.requires_grad == before[name][1], name
        assert value.grad is None, name
    assert not any(module.training for module in hf.modules())


@pytest.mark.slow
def test_the_steps_are_those_of_a_loop_written_out():
    model = as_model(tiny_model("llama"))
    options, rows = Steps(steps=3, batch=7, accumulate=1, rate=1e-2, warmup=0.0), examples()
    scores, _ = learn_scales(model, rows, options)
    heads = [HeadId(layer, head) for layer in range(4) for head in range(8)]
    factors = torch.ones(32, requires_grad=True)
    optimiser = torch.optim.AdamW([factors], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    for step in range(3):
        optimiser.param_groups[0]["lr"] = options.rate * 0.5 * (1 + math.cos(math.pi * step / 3))
        optimiser.zero_grad()
        with attached(model) as plan, plan.running(LearntScaling(heads, factors)):
            answer_loss(model.hf, collate(rows)).backward()  # all of them: their order does not matter
        torch.nn.utils.clip_grad_norm_([factors], 1.0)
        optimiser.step()
    np.testing.assert_allclose(scores.values.flatten(), factors.detach().numpy(), atol=1e-5)
    assert np.abs(scores.values - 1).min() > 1e-4


class Killed(BaseException):
    pass


def kill_at(step):
    def report(done, total, remark):
        if done == step:
            raise Killed

    return report


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_scales(tmp_path):
    model, options = as_model(tiny_model("llama")), Steps(**FEW)
    whole, rows = learn_scales(model, examples(), options)
    states = tmp_path / "states"
    with pytest.raises(Killed):
        learn_scales(model, examples(), options, states=states, report=kill_at(5))
    kept = states / "checkpoint-2" / "model.safetensors"
    assert kept.stat().st_size < 1000  # the scales, and no copy of the model
    (states / "checkpoint-4" / COMPLETE).unlink()  # as if it was killed while the fourth was being written
    done = []
    again, continued = learn_scales(model, examples(), options, states=states, report=lambda step, *_: done.append(step))
    assert done == [3, 4, 5, 6]
    assert again == whole
    assert continued == rows


@pytest.mark.slow
def test_the_folder_holds_scales_and_a_checkpoint_that_has_them(tmp_path):
    model = Model(tiny_model("qwen3_next"), character_tokenizer())
    data, options, folder = Prepared(tuple(examples()), {"no_gold": 1}), Steps(**(FEW | {"rate": 0.2})), tmp_path / "out"
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    with pytest.raises(Killed):
        scales_to_folder(model, data, options, folder, {"data": "d"}, report=kill_at(3))
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]
    with pytest.raises(HeadwiseError, match="other options"):
        scales_to_folder(model, data, options, folder, {"data": "e"})
    made = scales_to_folder(model, data, options, folder, {"data": "d"})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert json.loads((folder / "training.json").read_text())["curve"] == made["curve"]
    assert (made["scaled_heads"], made["counts"]) == ("all", {"no_gold": 1})
    scores = hw.load_heads(folder / "scales.json")
    heads = [HeadId(layer, head) for layer in model.modules for head in range(model.heads.shape[1])]
    factors = torch.tensor([scores[head] for head in heads])
    ids, merged = torch.tensor([examples()[0].ids]), hw.load(str(folder / "merged"))
    with torch.no_grad(), attached(model) as plan, plan.running(LearntScaling(heads, factors)):
        expected = model.hf(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(merged.hf(ids).logits, expected, atol=1e-5, rtol=1e-4)
        assert (expected - model.hf(ids).logits).abs().max() > 1e-3
    assert merged.tokenizer.encode("a key") == model.tokenizer.encode("a key")
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())


def test_what_cannot_be_scaled_is_refused(tmp_path):
    model, options = as_model(tiny_model("llama")), Steps(**FEW)
    data = Prepared(tuple(examples()), {})
    with pytest.raises(HeadwiseError, match="no head to scale"):
        learn_scales(model, examples(), options, HeadSet.of([], (4, 8)))
    with pytest.raises(HeadwiseError, match="belong to a model of 2 layers x 2 heads"):
        scales_to_folder(model, data, options, tmp_path / "out", {}, HeadSet.of([(0, 1)], (2, 2)))
    with pytest.raises(HeadwiseError, match="no example"):
        learn_scales(model, [], options)
    with pytest.raises(HeadwiseError, match="L5H0 lies outside a model of 4 layers x 8 heads"):
        scale_in_weights(model.hf, {HeadId(5, 0): 0.5})
    adapted = with_lora(model, Tuning(steps=1))
    with pytest.raises(HeadwiseError, match="has an adapter"):
        scales_to_folder(adapted, data, options, tmp_path / "out", {})
    assert not any(tmp_path.iterdir())
