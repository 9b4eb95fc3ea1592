"""The distilled chooser against a slow loop, its training, its files, and released EAGLE-3 drafts."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from headwise.attention.call import Pass
from headwise.attention.plan import attached
from headwise.caches.chooser_parts import in_layers
from headwise.caches.roomy import roomy_cache
from headwise.caches.sparse_cache import sparse_decode
from headwise.heads import HeadwiseError
from headwise.maths.distil import attention_loss, chained_attention
from headwise.maths.rotation import frequencies, rotated, yarn
from headwise.methods.specontext import train
from headwise.methods.specontext.chooser import Distilled
from headwise.methods.specontext.draft import head_rows
from headwise.methods.specontext.train import ChooserTraining, train_chooser
from headwise.models.draft_head import INPUTS, DraftHead, read_draft_head, shape_for
from headwise.models.eagle import read_eagle
from headwise.models.forward import forward
from headwise.models.load import load
from headwise.models.model import as_model
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack
from headwise.runtime.rundir import RunDirectory
from headwise.testing.tiny import tiny_model
from tests.reference import draft as slow

LENGTH, STEPS = 11, 4
CLOSE = {"atol": 2e-6, "rtol": 1e-4}
TRAIN = ChooserTraining(steps=4, batch=1, length=96, rows=8, words=50, unroll=2)


@pytest.fixture(scope="module")
def model():
    return as_model(tiny_model("llama"))


@pytest.fixture(scope="module")
def lab():
    return load(str(bundled_model()))


@pytest.fixture(scope="module")
def text(lab):
    words = np.random.default_rng(0).choice(["key", "lamp", "mill", "red", "door", "old", "bird", "sun"], 3000)
    return Haystack([" ".join(words) + "."], PieceEncoder(lab.tokenizer))


def made(model, inputs="emb+feat", length=64, seed=0):
    torch.manual_seed(seed)
    head = DraftHead(shape_for(model, inputs, length))
    for own in head.parameters():
        own.data.normal_(1 if own.ndim == 1 else 0, 0.3)
    return head.eval().requires_grad_(False)


def drawn(rows=1, tokens=LENGTH + STEPS, seed=3):
    return 2 + torch.randint(0, 94, (rows, tokens), generator=torch.Generator().manual_seed(seed))


class Asked:
    """Step: asks the chooser at the first layer of every step, while everything is read."""

    def __init__(self, chooser, model):
        self.chooser, self.found = chooser, {}
        chooser.start(model, model.heads.full_layers)

    def begin(self, now):
        self.step = now.before
        self.chooser.begin(now)

    def look(self, call):
        if call.query.shape[2] == 1 and call.layer == 0:
            self.found[self.step] = self.chooser.scores(call, call.whole)


@torch.no_grad()
def asked(chooser, model, ids, stops, mask=None):
    """Scores by step. stops: behind each pass; a smaller one takes tokens back."""
    cache, step = roomy_cache(model.hf.config), Asked(chooser, model)
    with chooser.opened(model), attached(model) as plan, plan.running(step):
        for stop in stops:
            before = cache.get_seq_length()
            if stop <= before:
                cache.crop(stop - 1 - before)
                before = stop - 1
            forward(model.hf, ids[:, before:stop], cache, attention_mask=None if mask is None else mask[:, :stop])
    return step.found


@torch.no_grad()
def wanted(head, model, ids, turning=None, scale=1.0, level="head"):
    """Of the slow loop, for the last of ids [T]."""
    hidden = model.hf(ids[None], output_hidden_states=True, use_cache=False).hidden_states
    embeddings = model.hf.get_input_embeddings()(ids)
    turning = frequencies(head.shape.head_dim, head.shape.theta) if turning is None else turning
    return slow.scores(head, embeddings, {i: states[0] for i, states in enumerate(hidden)}, turning, scale, level)


@pytest.mark.parametrize("level", ["head", "batch"])
@pytest.mark.parametrize("inputs", INPUTS)
def test_scores_are_those_of_the_definition(model, inputs, level):
    head, ids = made(model, inputs), drawn()
    found = asked(Distilled(head, level), model, ids, [LENGTH, *range(LENGTH + 1, LENGTH + STEPS + 1)])
    assert sorted(found) == list(range(LENGTH, LENGTH + STEPS))
    for place, scores in found.items():
        torch.testing.assert_close(scores[0], wanted(head, model, ids[0, : place + 1], level=level), **CLOSE)


def test_a_text_in_pieces_and_tokens_taken_back(model):
    head, ids = made(model), drawn()
    stops = [4, 5, 9, 10, 8, 9, 13, 14]  # two prompts, then three tokens are taken back, and a turn of four tokens
    found = asked(Distilled(head), model, ids, stops)
    for place in (4, 9, 8, 13):
        torch.testing.assert_close(found[place][0], wanted(head, model, ids[0, : place + 1]), **CLOSE)


def test_padded_rows_are_as_if_alone(model):
    head, ids = made(model), drawn(2)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    found = asked(Distilled(head), model, ids, [LENGTH, LENGTH + 1, LENGTH + 2], mask)
    scores = found[LENGTH + 1]
    torch.testing.assert_close(scores[0, :, 5:], wanted(head, model, ids[0, 5 : LENGTH + 2]), **CLOSE)
    assert not scores[0, :, :5].any()
    torch.testing.assert_close(scores[1], wanted(head, model, ids[1, : LENGTH + 2]), **CLOSE)


@pytest.mark.parametrize("stops", [[LENGTH, LENGTH + 1, LENGTH + 2], [5, 6, LENGTH + 1, LENGTH + 2], [7, 9, 10, LENGTH, LENGTH + 2, LENGTH + 3]])
@pytest.mark.parametrize("inputs", INPUTS)
def test_padding_behind_a_prompt_and_between_turns_counts_for_nothing(model, inputs, stops):
    """Turns of different length in one batch; the token behind the padding follows the last one in front of it."""
    head, ids = made(model, inputs), drawn(3)
    mask = torch.ones_like(ids)
    mask[0, 6:9] = 0
    mask[1, :2] = mask[1, 7:8] = 0
    chooser, cache = Distilled(head), roomy_cache(model.hf.config)
    step, before, looked = Asked(chooser, model), 0, 0
    with torch.no_grad(), chooser.opened(model), attached(model) as plan, plan.running(step):
        for stop in stops:
            places = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, before:stop]
            forward(model.hf, ids[:, before:stop], cache, attention_mask=mask[:, :stop], position_ids=places)
            before = stop
    for place, scores in step.found.items():
        for row, seen in enumerate(mask[:, : place + 1].bool()):
            if seen[-1]:
                looked += 1
                torch.testing.assert_close(scores[row][:, seen], wanted(head, model, ids[row, : place + 1][seen]), **CLOSE)
    assert looked >= 3


def test_positions_are_stretched_beyond_the_trained_length(model):
    head, ids = made(model, length=6), drawn()
    stretched = asked(Distilled(head), model, ids, [3, 4, LENGTH, LENGTH + 1])
    torch.testing.assert_close(stretched[3][0], wanted(head, model, ids[0, :4]), **CLOSE)
    turning, scale = yarn(frequencies(head.shape.head_dim, head.shape.theta), head.shape.theta, 6, 2.0)
    torch.testing.assert_close(stretched[LENGTH][0], wanted(head, model, ids[0, : LENGTH + 1], turning, scale), **CLOSE)
    plain = asked(Distilled(head, stretch=False), model, ids, [LENGTH, LENGTH + 1])
    torch.testing.assert_close(plain[LENGTH][0], wanted(head, model, ids[0, : LENGTH + 1]), **CLOSE)


def test_dilation_wants_what_stands_behind(model):
    head, ids = made(model), drawn()
    plain, wide = (asked(Distilled(head, dilate=places), model, ids, [LENGTH, LENGTH + 1])[LENGTH] for places in (0, 1))
    for j in range(1, LENGTH + 1):
        assert torch.equal(wide[..., j], torch.maximum(plain[..., j], plain[..., j - 1]))
    assert torch.equal(wide[..., 0], plain[..., 0])


def test_a_block_leaves_no_hook(model):
    head = made(model)
    before = [len(layer._forward_pre_hooks) for layer in model.layers]
    with sparse_decode(model, Distilled(head), budget=8, sinks=2, recent=3, check=False) as cache, torch.no_grad():
        for new in (drawn(tokens=LENGTH), drawn(tokens=1), drawn(tokens=1)):
            forward(model.hf, new, cache)
        assert cache.report()["sparse_steps"] == 2
    assert [len(layer._forward_pre_hooks) for layer in model.layers] == before


def test_a_block_that_breaks_off_leaves_nothing_behind(model):
    chooser, before = Distilled(made(model)), [len(layer._forward_pre_hooks) for layer in model.layers]
    with pytest.raises(IndexError), sparse_decode(model, chooser, budget=8, sinks=2, recent=3) as cache, torch.no_grad():
        _ = forward(model.hf, drawn(tokens=LENGTH), cache).logits[9]
    assert not chooser._taps
    assert [len(layer._forward_pre_hooks) for layer in model.layers] == before


def test_one_chooser_serves_one_block_at_a_time(model):
    chooser, other, options = Distilled(made(model)), as_model(tiny_model("llama", seed=9)), {"budget": 8, "sinks": 2, "recent": 3, "check": False}

    def logits(chooser, inside=False):
        with sparse_decode(model, chooser, **options) as cache, torch.no_grad():
            forward(model.hf, drawn(tokens=LENGTH), cache)
            if inside:
                with pytest.raises(HeadwiseError, match="at work in another open block"), sparse_decode(other, chooser, **options):
                    pass
            return forward(model.hf, drawn(tokens=1), cache).logits

    first = logits(chooser)
    assert torch.equal(logits(chooser, inside=True), first)
    with sparse_decode(other, chooser, **options):
        pass


def test_what_was_read_in_inference_mode_goes_on_outside(model):
    found = []
    for mode in (torch.inference_mode, torch.no_grad):
        with sparse_decode(model, Distilled(made(model)), budget=8, sinks=2, recent=3, check=False) as cache:
            with mode():
                forward(model.hf, drawn(tokens=LENGTH), cache)
            with torch.no_grad():
                found.append(torch.cat([forward(model.hf, drawn(tokens=1), cache).logits for _ in range(3)]))
    assert torch.equal(*found)


def test_a_head_of_another_dtype_is_used_in_float32(model):
    ids = drawn()
    scores = [asked(Distilled(head), model, ids, [LENGTH, LENGTH + 1])[LENGTH] for head in (made(model).bfloat16(), made(model).bfloat16().float())]
    assert torch.equal(*scores)


def test_bytes_that_choosing_reads(model):
    """Its weights and its rotated keys, once per step; both in float32."""
    head, ids = made(model), drawn(2)
    chooser = Distilled(head)
    asked(chooser, model, ids, [LENGTH, LENGTH + 1])
    weights = 4 * sum(own.numel() for own in head.parameters())
    assert chooser.reads(0, None) == weights + 4 * 2 * head.shape.kv_heads * (LENGTH + 1) * head.shape.head_dim
    assert chooser.reads(1, None) == 0


def test_a_text_that_it_has_not_read_is_refused(model):
    chooser = Distilled(made(model))
    chooser.start(model, [0])
    with pytest.raises(HeadwiseError, match="has read 0 of the 5 tokens"):
        chooser.begin(Pass(5, drawn(tokens=1), None, True, None))


@given(st.sampled_from([8, 16, 64]), st.floats(1, 64), st.integers(64, 4096), st.sampled_from([1e4, 1e5, 5e5]))
@settings(max_examples=30)
def test_yarn_is_that_of_transformers(width, factor, length, theta):
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": length, "rope_theta": theta}
    config = LlamaConfig(hidden_size=width, num_attention_heads=1, head_dim=width, max_position_embeddings=length, rope_parameters=rope)
    theirs, scale = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    ours, own = yarn(frequencies(width, theta), theta, length, factor)
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)
    assert own == pytest.approx(scale)


def test_rotation_is_that_of_transformers():
    states, turning = torch.randn(1, 2, 7, 16), frequencies(16, 1e4)
    angle = torch.cat([torch.arange(7)[:, None] * turning] * 2, dim=-1)[None]
    theirs, _ = apply_rotary_pos_emb(states, states, angle.cos(), angle.sin())
    torch.testing.assert_close(rotated(states, torch.arange(7), turning), theirs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_chained_attention_position_by_position(steps):
    query = torch.randn(1, 4, 6, 8)
    keys, values = ([torch.randn(1, 2, 6, 8) for _ in range(steps)] for _ in range(2))
    found = chained_attention(query, keys, values)[0]
    expected = slow.chained(query[0], [key[0] for key in keys], [value[0] for value in values])
    torch.testing.assert_close(found[:, steps - 1 :], expected[:, steps - 1 :], **CLOSE)  # positions in front stand for nothing


def test_a_planted_place_is_learnt(model):
    """Rows attend to the one earlier place that holds their own token."""
    head = made(model, "emb").requires_grad_(True)
    optimiser, generator = torch.optim.AdamW(head.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    rows = torch.arange(10, 20)

    def drawn_texts(count):
        half = torch.stack([torch.randperm(94, generator=generator)[:10] for _ in range(count)])
        order = torch.stack([torch.randperm(10, generator=generator) for _ in range(count)])
        ids = torch.cat([half, half.gather(1, order)], dim=1) + 2
        goal = torch.zeros(count, 1, 10, 20).scatter(3, order[:, None, :, None], 1.0).expand(-1, head.shape.kv_heads, -1, -1)
        return model.hf.get_input_embeddings()(ids).detach(), goal

    free = torch.arange(20) < 10
    for _ in range(150):
        embeddings, goal = drawn_texts(8)
        optimiser.zero_grad()
        loss = attention_loss(head_rows(head, embeddings, None, rows, free.expand(10, -1)), goal)
        loss.backward()
        optimiser.step()
    embeddings, goal = drawn_texts(16)
    with torch.no_grad():
        said = head_rows(head, embeddings, None, rows, free.expand(10, -1)).amax(dim=1).argmax(dim=-1)
    assert (said == goal[:, 0].argmax(dim=-1)).float().mean() > 0.9


@pytest.mark.parametrize("loss", ["attention", "tokens", "labels"])
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.slow
def test_a_training_that_was_stopped_ends_with_the_same_weights(lab, text, tmp_path, monkeypatch, loss, inputs):
    monkeypatch.setattr("headwise.methods.specontext.train.SAVED", 2)
    options = replace(TRAIN, loss=loss, inputs=inputs)
    whole = train_chooser(lab, text, options, [(2, 1), (5, 3)])

    def stop(done, total, remark):
        if done == 3:
            raise KeyboardInterrupt

    parts = RunDirectory(tmp_path / "x.run", {"a": 1})
    with pytest.raises(KeyboardInterrupt):
        train_chooser(lab, text, options, [(2, 1), (5, 3)], stop, parts)
    assert [path.name for path in (tmp_path / "x.run").glob("*.npz")] == ["step-2.npz"]
    again = train_chooser(lab, text, options, [(2, 1), (5, 3)], parts=parts)
    assert all(torch.equal(own, whole.state_dict()[name]) for name, own in again.state_dict().items())
    assert again.story == whole.story
    assert [row["step"] for row in whole.story["curve"]] == [2, 4]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.slow
def test_training_takes_gradients_whatever_the_caller_does(lab, text, mode):
    with mode():
        inside = train_chooser(lab, text, replace(TRAIN, steps=1))
    assert inside.story == train_chooser(lab, text, replace(TRAIN, steps=1)).story


@pytest.mark.parametrize("loss", ["tokens", "labels"])
def test_an_output_projection_that_is_not_there_is_refused(lab, text, loss):
    model = as_model(tiny_model("llama", vocab_size=lab.hf.config.vocab_size, tie_word_embeddings=False))
    model.readout.projection.to("meta")
    with pytest.raises(HeadwiseError, match="output projection of llama is offloaded or packed; train with loss attention"):
        train_chooser(model, text, replace(TRAIN, loss=loss))


@pytest.mark.slow
def test_a_vocabulary_without_any_true_token_teaches_nothing(lab, text):
    head = train_chooser(lab, text, replace(TRAIN, loss="labels", words=2))
    assert all(bool(own.isfinite().all()) for own in head.state_dict().values())


def test_a_training_that_is_lost_says_so(lab, text, monkeypatch):
    monkeypatch.setattr("headwise.methods.specontext.train._loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(HeadwiseError, match="loss of step 1 is nan; train with a smaller rate"):
        train_chooser(lab, text, TRAIN)


def test_heads_that_cannot_choose_count_for_nothing(lab):
    model = as_model(tiny_model("gemma3_text"))  # layers 0 and 1 have sliding windows
    by_layer = in_layers(model, [(2, 1), (0, 0)], model.heads.full_layers)
    assert by_layer == {2: [1]}
    text = Haystack(["Red key. " * 1500], PieceEncoder(lab.tokenizer))
    assert max(text.window(200, (0,)).ids) >= 0
    with pytest.raises(HeadwiseError, match="none of the heads lies in a layer of gemma3_text with full attention"):
        train_chooser(model, text, TRAIN, [(0, 0), (1, 2)])


@pytest.mark.slow
def test_training_finds_where_the_model_attends(lab, text):
    head = train_chooser(lab, text, ChooserTraining(steps=60, batch=2, length=128, rows=32))
    first, last = head.story["curve"][0], head.story["curve"][-1]
    assert last["recall"] > last["recall_by_chance"] + 0.1
    assert last["held_out_loss"] <= first["held_out_loss"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"inputs": "x"}, "unknown inputs 'x'"), ({"loss": "x"}, "unknown loss"), ({"steps": 0}, "steps must be"), ({"length": 50}, "length must be"),
        ({"rate": 0.0}, "rate must lie"), ({"share": 2.0}, "share in"), ({"rate": float("nan")}, "rate must lie"),
        ({"steps": 2.5}, "steps must be"), ({"rate": "x"}, "rate must lie"), ({"seed": 2**64}, "the seed must"), ({"seed": -1}, "the seed must"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(change, part):
    with pytest.raises(HeadwiseError, match=part):
        replace(TRAIN, **change)


def test_training_refuses_what_cannot_be(lab, text):
    with pytest.raises(HeadwiseError, match="longer than the 1280 positions"):
        train_chooser(lab, text, replace(TRAIN, length=2000))
    with pytest.raises(HeadwiseError, match=r"layer|head"):
        train_chooser(lab, text, TRAIN, [(99, 0)])
    short = Haystack(["The key is red. " * 250], PieceEncoder(lab.tokenizer))
    with pytest.raises(HeadwiseError, match="its last twentieth is held out and must hold 97 tokens"):
        train_chooser(lab, short, TRAIN, report=lambda *_: pytest.fail("a step was made before"))


def test_a_file_gives_back_what_was_saved(model, tmp_path):
    head = made(model)
    head.story = {"curve": [1]}
    head.save(tmp_path / "c.safetensors")
    again = read_draft_head(tmp_path / "c.safetensors")
    assert (again.shape, again.story) == (head.shape, head.story)
    for name, own in head.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], own, atol=1e-2, rtol=1e-2)


def test_files_that_are_no_chooser(model, tmp_path):
    path = tmp_path / "c.safetensors"
    for made_of, part in ((None, "no such file"), (b"x" * 50, "no readable safetensors"), ({"a": torch.ones(2)}, "is no chooser")):
        if isinstance(made_of, bytes):
            path.write_bytes(made_of)
        elif made_of:
            save_file(made_of, path)
        with pytest.raises(HeadwiseError, match=part):
            Distilled(path)
    with pytest.raises(HeadwiseError, match=r"is no folder with config\.json"):
        Distilled(tmp_path).start(model, [0])
    head = made(model)
    head.save(path, overwrite=True)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HeadwiseError, match="no readable safetensors"):
        Distilled(path)
    facts = {"schema": 1, "shape": {"model": "x"}, "story": {}}
    for given_facts, part in ((facts, "is broken"), (facts | {"schema": 9}, "schema 9")):
        save_file({"a": torch.ones(2)}, path, {"headwise_chooser": json.dumps(given_facts)})
        with pytest.raises(HeadwiseError, match=part):
            Distilled(path)


@pytest.mark.parametrize(
    "change",
    [
        {"taps": [99, 1, 2]}, {"taps": ["a", "b", "c"]}, {"taps": [-1, 0, 0]}, {"length": 0}, {"length": -5}, {"length": None}, {"theta": "x"},
        {"theta": 1}, {"theta": float("nan")}, {"eps": -1}, {"eps": "x"}, {"target_theta": float("inf")}, {"kv_heads": 3}, {"head_dim": 15},
        {"inputs": "z"}, {"layers": "4"}, {"heads": 0},
    ],
)  # fmt: skip
def test_a_file_whose_shape_makes_no_sense_is_broken(model, tmp_path, change):
    head, path = made(model), tmp_path / "c.safetensors"
    facts = {"schema": 1, "shape": asdict(head.shape) | change, "story": {}}
    save_file({name: own.contiguous() for name, own in head.state_dict().items()}, path, {"headwise_chooser": json.dumps(facts)})
    with pytest.raises(HeadwiseError, match=r"c\.safetensors is broken: .*(draft head|not iterable)"):
        Distilled(path)


def test_facts_and_weights_that_make_no_sense(model, tmp_path):
    path = tmp_path / "c.safetensors"
    for facts in ("[1]", "5", '"x"'):
        save_file({"a": torch.ones(2)}, path, {"headwise_chooser": facts})
        with pytest.raises(HeadwiseError, match="is no chooser"):
            Distilled(path)
    head = made(model)
    head.query.weight.data[0, 0] = float("nan")
    head.save(path, overwrite=True)
    with pytest.raises(HeadwiseError, match="not all of its weights are finite"):
        Distilled(path)
    for nothing in (5, None, b"x"):
        with pytest.raises(HeadwiseError, match="is made from a draft head, a file or a folder"):
            Distilled(nothing)


@pytest.mark.parametrize(
    ("change", "part"),
    [({"vocabulary": 7}, "tokens 7"), ({"width": 20}, "hidden width"), ({"layers": 3}, "layers 3"), ({"target_theta": 5.0}, "RoPE base 5")],
)
def test_a_chooser_of_another_model_is_refused(model, change, part):
    head = made(model)
    head.shape = replace(head.shape, model="other", **change)
    with pytest.raises(HeadwiseError, match=f"made for other .*{part}.*train one"):
        Distilled(head).start(model, [0])


@pytest.mark.parametrize("options", [{"level": "x"}, {"dilate": -1}, {"dilate": True}])
def test_options_of_the_chooser(model, options):
    with pytest.raises(HeadwiseError, match=r"unknown level|whole number"):
        Distilled(made(model), **options)


def eagle(folder, model, head, layer, **changes):
    """A folder as EAGLE-3 drafts are released, around a draft head."""
    folder.mkdir(exist_ok=True)
    shape, state = head.shape, head.state_dict()
    names = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "embedding_norm": "input_layernorm", "feature_norm": "hidden_norm"}
    tensors = {f"{layer}.{theirs}.weight": state[f"{own}.weight"].contiguous() for own, theirs in names.items()}
    tensors |= {"fc.weight": state["fuse.weight"], "norm.weight": torch.ones(shape.width), "d2t": torch.zeros(4, dtype=torch.int64)}
    own = {
        "vocab_size": shape.vocabulary, "hidden_size": shape.width, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "rms_norm_eps": shape.eps, "rope_theta": shape.theta, "max_position_embeddings": 64,
    } | changes  # fmt: skip
    if layer == "midlayer":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
        own = {"speculators_model_type": "eagle3", "transformer_layer_config": own, "eagle_aux_hidden_state_layer_ids": list(shape.taps)}
    (folder / "config.json").write_text(json.dumps(own))
    return folder


@pytest.mark.parametrize("layer", ["midlayer", "layers.0"])
def test_an_eagle_draft_gives_its_queries_and_keys(model, tmp_path, layer):
    layers = model.heads.shape[0]
    head = made(model)
    head.shape = replace(head.shape, taps=(min(2, layers - 1), layers // 2, max(0, layers - 3)), target_theta=None)
    if layer == "midlayer" and layers < 3:
        head.shape = replace(head.shape, taps=(2, layers // 2, layers - 3))
    folder = eagle(tmp_path / "draft", model, head, layer)
    if layer == "midlayer" and layers < 3:
        with pytest.raises(HeadwiseError, match=f"{model.name} has {layers}"):
            read_eagle(folder, model)
        return
    ids = drawn()
    scores = [asked(Distilled(each), model, ids, [LENGTH, LENGTH + 1])[LENGTH] for each in (head, folder)]
    assert torch.equal(*scores)
    alone = read_eagle(folder, model, "emb")
    assert alone.shape.taps == ()
    assert torch.equal(alone.query.weight, head.query.weight[:, : head.shape.width])


def test_folders_that_are_no_eagle_draft(model, tmp_path):
    head = made(model)
    head.shape = replace(head.shape, target_theta=None)
    with pytest.raises(HeadwiseError, match="no such model folder"):
        read_eagle(tmp_path / "nothing", model)
    folder = eagle(tmp_path / "draft", model, head, "layers.0")
    with pytest.raises(HeadwiseError, match="inputs emb or"):
        read_eagle(folder, model, "feat-lite")
    eagle(folder, model, head, "layers.0", vocab_size=5)
    with pytest.raises(HeadwiseError, match="tokens 5"):
        read_eagle(folder, model)
    eagle(folder, model, head, "layers.0", rope_scaling={"rope_type": "llama3"})
    with pytest.raises(HeadwiseError, match="kind 'llama3'"):
        read_eagle(folder, model)
    eagle(folder, model, head, "layers.0", num_attention_heads=4)
    with pytest.raises(HeadwiseError, match="does not fit its own"):
        read_eagle(folder, model)
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(HeadwiseError, match="no EAGLE-3 draft: it lacks"):
        read_eagle(folder, model)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(HeadwiseError, match="cannot be read"):
        read_eagle(folder, model)
    (folder / "model.safetensors").unlink()
    with pytest.raises(HeadwiseError, match="holds no weights"):
        read_eagle(folder, model)
    (folder / "config.json").write_text("[1")
    with pytest.raises(HeadwiseError, match=r"config\.json cannot be read"):
        read_eagle(folder, model)


def test_weights_of_a_draft_that_are_no_weights(model, tmp_path):
    head = made(model)
    head.shape = replace(head.shape, taps=(0, 1, 2), target_theta=None)
    folder = eagle(tmp_path / "draft", model, head, "midlayer", eagle_aux_hidden_state_layer_ids=[0, 1, 2])
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    for name, value, part in (
        ("fc.weight", torch.ones(5), "fuse.weight has another number of axes"),
        ("midlayer.self_attn.q_proj.weight", torch.tensor(1.0), "query.weight has another"),
        ("fc.weight", tensors["fc.weight"] * float("nan"), "fuse.weight has another number of axes, or"),
        ("fc.weight", "x", "something other than named tensors"),
    ):
        torch.save(tensors | {name: value}, folder / "pytorch_model.bin")
        for inputs in ("emb", "emb+feat"):
            with pytest.raises(HeadwiseError, match=part):
                read_eagle(folder, model, inputs)
    for content in (b"hello world", b"version https://git-lfs", b"\x80\x02cposix\nsystem\nq\x00X\x01\x00\x00\x00aq\x01\x85q\x02Rq\x03."):
        (folder / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(HeadwiseError, match="it is no file of tensors alone"):
            read_eagle(folder, model)
    for content in ("5", "[]", "[" * 100000, '{"transformer_layer_config": 5}'):
        (folder / "config.json").write_text(content)
        with pytest.raises(HeadwiseError, match=r"config\.json cannot be read"):
            read_eagle(folder, model)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"head_dim": 15}, "even head_dim"), ({"num_key_value_heads": 3}, "KV heads"), ({"rope_theta": -3}, "theta"),
        ({"max_position_embeddings": -1}, "length"), ({"vocab_size": float("inf")}, "lacks or misstates"), ({"rms_norm_eps": -1}, "eps"),
    ],
)  # fmt: skip
def test_a_draft_whose_configuration_makes_no_sense(model, tmp_path, change, part):
    head = made(model)
    head.shape = replace(head.shape, target_theta=None)
    with pytest.raises(HeadwiseError, match=part):
        read_eagle(eagle(tmp_path / "draft", model, head, "layers.0", **change), model)


class AnyText:
    """Random windows in place of a haystack: tiny models have no tokenizer."""

    def __len__(self):
        return 10**6

    def window(self, tokens, seed, part):
        return SimpleNamespace(ids=tuple(np.random.default_rng([int(n) for n in seed]).integers(2, 90, tokens).tolist()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "cohere2"])
def test_what_is_taught_are_the_probabilities_of_the_model(family):
    """With the family's own scale and cap of logits."""
    own = as_model(tiny_model(family))
    teacher = train._Teacher(own, AnyText(), replace(TRAIN, loss="tokens"), None)
    seen = teacher.read((0, 1), 1, (0.0, 1.0))
    with torch.no_grad():
        logits = own.hf(seen.ids[:, :-1]).logits.float()
    torch.testing.assert_close(teacher.wanted_tokens(seen), logits[..., teacher._words].softmax(dim=-1), atol=1e-6, rtol=1e-4)
