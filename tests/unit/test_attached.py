"""Blocks on models that other libraries have touched, the pipeline's order, and what a block leaves behind."""

import dataclasses

import pytest
import torch

import headwise
from headwise.attention import ablate, force_copy, observe, steer
from headwise.attention.call import Whole
from headwise.attention.means import head_means, head_samples
from headwise.attention.plan import attached
from headwise.caches.kept_cache import compress
from headwise.caches.kept_file import load_cache, save_cache
from headwise.heads import HeadSet, HeadwiseError
from headwise.methods.snapkv.press import SnapKV
from headwise.models.forward import token_tensor
from headwise.models.model import Model, device_of
from headwise.prompts.prompt import Prompt
from headwise.runtime.relevance import candidates, ranks, relevance
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache

OUTSIDE = r"^token id (96|-1) is outside of the model's vocabulary of 96 tokens; is it from another tokenizer\?$"
HEADS = HeadSet.of([(1, 2), (2, 5)], (4, 8))
IDS = torch.arange(3, 43)[None]


@pytest.mark.parametrize("wrong", [96, -1])
@pytest.mark.parametrize("block", [observe, headwise.attribute, lambda model: force_copy(model, HEADS, [(2, 4)])])
def test_ids_outside_of_the_vocabulary_are_refused_in_every_block(block, wrong):
    model = tiny_model("llama")
    ids = IDS.clone()
    ids[0, 7] = wrong
    with block(model), pytest.raises(HeadwiseError, match=OUTSIDE):
        model(input_ids=ids)
    with pytest.raises(HeadwiseError, match=OUTSIDE):
        token_tensor(model, ids[0].tolist())
    for asked in (relevance, ranks):
        with pytest.raises(HeadwiseError, match=OUTSIDE):
            asked(Model(model), [Prompt((5, 6, 7))], [wrong])  # no pass reads the last token of an answer
    with pytest.raises(HeadwiseError, match=OUTSIDE):
        candidates(Model(model), [Prompt((5, 6, 7))], [[3, wrong]])


def offloaded(kind, folder):
    accelerate = pytest.importorskip("accelerate")
    hf = tiny_model("llama")
    if kind == "cpu":
        return accelerate.cpu_offload(hf, execution_device="cpu")
    return accelerate.disk_offload(hf, str(folder), execution_device="cpu")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_offloaded_models_are_observed_and_changed_as_others(kind, tmp_path):
    found = []
    for hf in (tiny_model("llama"), offloaded(kind, tmp_path)):
        assert device_of(hf) == torch.device("cpu")
        means = head_means(hf, [IDS])
        with observe(hf, rows=2, spans=[(1, 9)]) as seen:
            own = [hf(IDS).logits, seen.argmax, seen.lse, seen.mass]
        samples = head_samples(hf, [IDS], 5)
        for mode in ("zero", "uniform", "mean", "resample"):
            filling = {"mean": {"means": means}, "resample": {"samples": samples}}.get(mode, {})
            with ablate(hf, HEADS, mode=mode, **filling):
                own.append(hf(IDS).logits)
        with steer(hf, HEADS, [(2, 9)], bias=2.0):
            own.append(hf(IDS).logits)
        with compress(hf, SnapKV(budget=20)) as cache:
            own += [cache.prefill(IDS), hf(IDS[:, :1], **with_cache(cache)).logits]
        found.append(own)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_offloaded_weights_have_the_fingerprint_of_others(tmp_path):
    hf = offloaded("cpu", tmp_path)
    with compress(hf, SnapKV(budget=20)) as cache:
        cache.prefill(IDS)
        save_cache(cache, tmp_path / "cache.safetensors")  # its fingerprint reads the weights where accelerate keeps them
    assert load_cache(tmp_path / "cache.safetensors", tiny_model("llama")).get_seq_length() == IDS.shape[1]
    with pytest.raises(HeadwiseError, match="'meta', that is, nowhere"):
        device_of(tiny_model("llama").to("meta"))


@torch.no_grad()
def test_one_replaced_layer_is_named(monkeypatch):
    hf = tiny_model("llama")
    attention = hf.model.layers[2].self_attn
    other = tiny_model("llama", seed=3).model.layers[2].self_attn
    monkeypatch.setattr(attention, "forward", other.forward)
    hf(IDS)
    with attached(hf):
        hf(IDS)  # nothing to see or to change
    with pytest.raises(HeadwiseError, match=r"did not run headwise's attention in layer 2, so its heads .* there"), observe(hf):
        hf(IDS)
    monkeypatch.setattr(hf.model.layers[3].self_attn, "forward", other.forward)
    with pytest.raises(HeadwiseError, match="in layers 2, 3"), ablate(hf, HEADS):
        hf(IDS)


@torch.no_grad()
def test_a_model_object_is_taken_everywhere(tmp_path):
    hf = tiny_model("llama")
    model = Model(hf)
    with observe(model, rows=1) as seen, ablate(model, HEADS), steer(model, HEADS, [(1, 3)], bias=1.0):
        hf(IDS)
    assert seen.argmax.shape == (4, 1, 8, 1)
    assert torch.equal(head_means(model, [IDS]), head_means(hf, [IDS]))
    with headwise.compress(model, SnapKV(budget=20)) as cache:
        assert cache.model is model
        cache.prefill(IDS)
        save_cache(cache, tmp_path / "c.safetensors")
        assert load_cache(tmp_path / "c.safetensors", model).get_seq_length() == 40


class Step:
    """Takes part in every stage and says so."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def begin(self, now):
        self.log.append((self.name, "begin", now.before))

    def choose_keys(self, call):
        self.log.append((self.name, "choose", call.layer))
        return call.source

    def edit_inputs(self, call):
        self.log.append((self.name, "inputs", call.layer))
        return call.query, call.source

    def attend(self, call):
        self.log.append((self.name, "attend", call.layer))

    def edit_output(self, call, output):
        self.log.append((self.name, "output", call.layer))
        return output

    def look(self, call):
        assert call.output is call.output
        self.log.append((self.name, "look", call.layer))


@torch.no_grad()
def test_steps_run_stage_by_stage_in_the_order_of_their_blocks():
    hf, log = tiny_model("llama"), []
    before = hf(IDS).logits
    with attached(hf) as plan, plan.running(Step("a", log)):
        with plan.running(Step("b", log)):
            assert torch.equal(hf(IDS).logits, hf(IDS).logits)
        hf(IDS)
    stages = ["choose", "inputs", "attend", "output", "look"]
    one_layer = [(name, stage) for stage in stages for name in "ab"]
    assert log[:2] == [("a", "begin", 0), ("b", "begin", 0)]
    assert [(name, stage) for name, stage, layer in log[2 : 2 + 10 * 4] if layer == 1] == one_layer
    assert [name for name, *_ in log[-21:]] == ["a"] * 21
    assert torch.equal(hf(IDS).logits, before)


@torch.no_grad()
def test_a_step_may_change_keys_and_values():
    """Values doubled in one layer: its heads give twice as much."""

    class Twice:
        def edit_inputs(self, call):
            source = call.whole
            return call.query, dataclasses.replace(
                source, values=tuple(2 * x for x in source.values)
            ) if call.layer == 1 else source

    class Seen:
        def look(self, call):
            outputs.setdefault(call.layer, []).append(call.output)

    hf, outputs = tiny_model("llama"), {}
    with attached(hf) as plan, plan.running(Seen()):
        hf(IDS)
        with plan.running(Twice()):
            hf(IDS)
    torch.testing.assert_close(outputs[1][1], 2 * outputs[1][0])
    assert torch.equal(*outputs[0])
    assert isinstance(Whole((), (), None).keys, tuple)


@torch.no_grad()
@pytest.mark.parametrize("stage", ["choose_keys", "edit_inputs", "attend", "edit_output", "look", "begin"])
def test_an_exception_in_any_stage_leaves_the_model_as_it_was(stage):
    hf = tiny_model("llama")
    before, state = hf(IDS).logits, {n: sorted(vars(m)) for n, m in hf.named_modules()}

    def fail(*_):
        raise RuntimeError("inside")

    step = Step("x", [])
    setattr(step, stage, fail)
    with pytest.raises(RuntimeError, match="inside"), attached(hf) as plan, plan.running(step):
        hf(IDS)
    assert {n: sorted(vars(m)) for n, m in hf.named_modules()} == state
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())
    assert torch.equal(hf(IDS).logits, before)


@torch.no_grad()
def test_the_same_step_twice_runs_twice_and_ends_once_each():
    hf, log = tiny_model("llama"), []
    step = Step("a", log)
    counts = []

    def count():
        log.clear()
        hf(IDS)
        counts.append(len(log))

    with attached(hf) as plan:
        with plan.running(step):
            with plan.running(step):
                count()
            count()
        count()
    assert counts == [2 * 21, 21, 0]
