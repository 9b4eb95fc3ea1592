"""Gates: maths against loops, the texts they are found on, and the search itself with a planted head."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headwise.heads import HeadScores, HeadwiseError, PromptError
from headwise.heads.headfile import from_json, to_json
from headwise.maths.gates import binarise, gate_loss, kept_count, kv_gates, mix, penalty, strongest
from headwise.methods.duo import gates as gates_module
from headwise.methods.duo.gates import describe_run, gate_scores, rate_factor
from headwise.methods.duo.options import Gates
from headwise.methods.duo.prompts import ASK, STATE, LabelledText, VaultOptions, vault_texts
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import Haystack
from headwise.runtime.rundir import RunDirectory
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise_lab.microworld.names import words
from tests.reference import gates as slow

# ---- maths

TABLES = arrays(np.float64, (3, 4), elements=st.sampled_from([-0.001, 0.0, 0.25, 0.5, 0.99, 1.0, 1.002]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_mixing_is_exact_at_the_ends_and_keeps_the_dtype(dtype):
    full, stream = torch.randn(2, 2, 5, 6, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = mix(full, stream, torch.tensor([1.0, 0.0, 0.25]))
    assert out.dtype == dtype
    assert torch.equal(out[:, :, :2], full[:, :, :2])
    assert torch.equal(out[:, :, 2:4], stream[:, :, 2:4])
    expected = 0.25 * full[:, :, 4:].double() + 0.75 * stream[:, :, 4:].double()
    torch.testing.assert_close(out[:, :, 4:].double(), expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-6, atol=1e-6)


def test_the_gradient_of_a_gate_is_what_its_heads_would_change():
    """d loss / d gate = <d loss / d out, full - stream> over the query heads of its KV head (card, section 7)."""
    full, stream, weight = torch.randn(3, 1, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    gates = torch.tensor([0.3, 0.9], requires_grad=True)
    (weight * mix(full, stream, gates)).sum().backward()
    parts = (weight * (full - stream)).sum(dim=(0, 1, 3))
    torch.testing.assert_close(gates.grad, torch.stack([parts[:2].sum(), parts[2:].sum()]))


def test_the_loss_is_that_of_the_loops():
    generator = torch.Generator().manual_seed(0)
    student, teacher, gates = (torch.randn(shape, generator=generator) for shape in ((1, 4, 6), (1, 4, 6), (3, 2)))
    found = gate_loss(student.bfloat16(), teacher.bfloat16(), gates)
    expected = slow.loss(student[0].bfloat16().tolist(), teacher[0].bfloat16().tolist(), gates.tolist())
    assert [float(part) for part in found] == pytest.approx(expected, rel=1e-5)
    assert found.distillation.dtype == found.penalty.dtype == torch.float32
    assert float(penalty(gates, "group")) == pytest.approx(slow.group_penalty(gates.tolist()), rel=1e-5)


def test_both_penalties_are_one_scale_and_have_a_gradient_at_zero():
    assert float(penalty(torch.full((3, 4), 0.7), "group")) == pytest.approx(float(penalty(torch.full((3, 4), 0.7))))
    gates = torch.zeros(3, 4, requires_grad=True)
    penalty(gates, "group").backward()
    assert torch.equal(gates.grad, torch.zeros(3, 4))
    with pytest.raises(HeadwiseError, match="unknown penalty 'sum'; use mean or group"):
        penalty(gates, "sum")


def test_the_learning_rate_rises_and_falls():
    assert [rate_factor(step, 2000) for step in range(2000)] == pytest.approx([slow.factor(step, 2000) for step in range(2000)])
    factors = [rate_factor(step, 2000) for step in (0, 38, 199, 399, 1000, 1599, 1800, 1999)]
    assert factors == pytest.approx([0.1, 0.1, 0.5, 1, 1, 1, 0.5, 0.1])
    assert all(0.1 <= rate_factor(step, steps) <= 1 for steps in (1, 2, 7) for step in range(steps))


@given(TABLES, st.sampled_from([0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans())
def test_binarising_is_a_stable_sort(gates, keep, with_ties):
    if gates.clip(0, 1).min() == gates.clip(0, 1).max():
        with pytest.raises(HeadwiseError, match="that is no ranking"):
            binarise(gates, keep)
        return
    rng = np.random.default_rng(int(gates.sum() * 1000) % 100)
    ties = [rng.integers(0, 2, gates.shape).astype(float) for _ in range(2)] if with_ties else []
    pattern = binarise(gates, keep, *ties)
    count = kept_count(keep, 12)
    assert {(int(i), int(j)) for i, j in np.argwhere(pattern.kept)} == slow.chosen(gates.tolist(), count, *ties)
    clamped = gates.clip(0, 1)
    least = clamped[pattern.kept].min()
    equals_left_out = (clamped[~pattern.kept] == least).any()
    assert pattern.tied == (int((clamped[pattern.kept] == least).sum()) if equals_left_out else 0)
    if keep == 1:
        assert np.isnan(pattern.cut)
        assert not pattern.high_cut
    else:
        assert pattern.cut == clamped[~pattern.kept].max()


def test_ties_are_decided_in_order():
    gates = np.array([[1.0, 1.0, 1.001], [1.0, 1.0, 0.2]])
    kept = lambda **ties: np.argwhere(binarise(gates, 2 / 6, **ties).kept).tolist()  # noqa: E731
    assert kept() == [[0, 0], [0, 2]]  # the unclamped value, then the index
    averaged = np.array([[0.5, 0.5, 0.1], [0.6, 0.5, 0.9]])
    assert kept(averaged=averaged) == [[0, 2], [1, 0]]
    averaged[1, 0] = 0.5
    assert kept(averaged=averaged, retrieval=np.array([[0, 0, 0], [0, 0.3, 0]])) == [[0, 2], [1, 1]]
    assert binarise(gates, 2 / 6).tied == 2
    assert binarise(gates, 5 / 6).tied == 0


def test_a_cut_among_high_gates_is_told():
    gates = np.array([[1.0, 0.95], [0.3, 0.92]])
    half, most = binarise(gates, 0.5), binarise(gates, 0.75)
    assert half.kept.tolist() == [[True, True], [False, False]]
    assert (half.tied, half.cut, half.high_cut) == (0, 0.92, True)
    assert (most.tied, most.cut, most.high_cut) == (0, 0.3, False)


def test_counts_are_shares():
    assert [kept_count(keep, 7) for keep in (0.01, 0.5, 0.6, 1)] == [1, 4, 4, 7]
    for keep in (0, -0.1, 1.01, float("nan")):
        with pytest.raises(HeadwiseError, match=r"keep is the share .* must lie in \(0, 1\]"):
            kept_count(keep, 7)


def test_broken_gates_are_refused():
    gates = np.array([[0.2, np.nan], [1, 0.5]])
    with pytest.raises(HeadwiseError, match="1 of 4 without one"):
        binarise(gates, 0.5)
    with pytest.raises(HeadwiseError, match=r"shape \(1, 2\) beside gates of shape \(2, 2\)"):
        binarise(np.eye(2), 0.5, np.ones((1, 2)))
    with pytest.raises(HeadwiseError, match="no layer with full attention"):
        binarise(np.empty((0, 2)), 0.5)


def test_tables_of_gates_for_a_model():
    table = np.array([[0.1, 0.9], [0.4, 0.3]])
    for values in (table, np.repeat(table, 4, axis=1)):
        assert np.array_equal(kv_gates(HeadScores(values, "gate"), 2, 8, 2, "m"), table)
    with pytest.raises(HeadwiseError, match="gates of 2 layers x 3 heads do not belong to m, which has 2 layers x 8 query heads"):
        kv_gates(HeadScores(np.zeros((2, 3)), "gate"), 2, 8, 2, "m")
    mixed = np.repeat(table, 4, axis=1)
    mixed[0, 1] += 0.1
    with pytest.raises(HeadwiseError, match="these copy scores differ between query heads that share a KV head"):
        kv_gates(HeadScores(mixed, "copy"), 2, 8, 2, "m")


def test_the_strongest_of_whole_tables():
    kept, tied = strongest(2, np.array([[3.0, 1.0], [2.0, 2.0]]))
    assert kept.tolist() == [[True, False], [True, False]]
    assert tied == 1


# ---- texts

SECRETS = " ".join(words("pass", "train") + words("pass", "test"))


def planted(layers, heads, layer, head, kv_heads):
    wording = [f"{STATE} {ASK} {SECRETS}.".format(number=number) for number in range(1, 4)]
    model, tokenizer = planted_copier(layers, heads, layer, head, kv_heads=kv_heads, texts=wording)
    return Model(model, tokenizer)


def texts_for(model, count=3, **options):
    encoder = PieceEncoder(model.tokenizer)
    options = {"lengths": (150, 200), "keys": 2, "words": 4} | options
    return vault_texts(Haystack(planted_task().texts, encoder), encoder, VaultOptions(**options), count)


@pytest.fixture(scope="module")
def model():
    return planted(2, 4, 1, 2, 2)


@pytest.mark.parametrize(("seed", "keys", "length"), [(0, 1, 1), (1, 2, 6), (7, 3, 4), (8, 3, 1)])
def test_every_label_is_a_word_that_was_hidden(model, seed, keys, length):
    texts = texts_for(model, 2, seed=seed, keys=keys, words=length, lengths=(200, 260))
    assert texts == texts_for(model, 3, seed=seed, keys=keys, words=length, lengths=(200, 260))[:2]
    assert texts[0] != texts[1]
    for text in texts:
        assert 200 <= len(text.ids) == len(text.labels) <= 260
        assert sum(text.labels) == keys * length
        decode = lambda ids: model.tokenizer.decode(ids)  # noqa: E731
        body, *answers = decode(text.ids).split("\nQuestion:")
        assert len(answers) == keys
        labelled = decode([i for i, label in zip(text.ids, text.labels, strict=True) if label]).split()
        for number, answer in enumerate(answers, 1):
            secret = " ".join(labelled[(number - 1) * length : number * length])
            assert f"the vault's pass-key {number} is {secret}." in body
            assert answer == f" What is the vault's pass-key {number}?\nAnswer: The vault's pass-key {number} is {secret}."
        assert [text.ids[place + 1] for place in text.places] == [i for i, k in zip(text.ids, text.labels, strict=True) if k]


def test_splits_share_no_word(model):
    found = {}
    for split in ("train", "test"):
        ids = [i for text in texts_for(model, split=split) for i, label in zip(text.ids, text.labels, strict=True) if label]
        found[split] = set(model.tokenizer.decode(ids).split())
    assert all(found.values())
    assert not found["train"] & found["test"]


def test_pass_keys_stand_at_the_drawn_depths(model):
    for text in texts_for(model, 6, depths=(0.6, 0.9), lengths=(400, 400), keys=1):
        at = model.tokenizer.decode(text.ids[:400]).split("\nQuestion:")[0]
        assert 0.45 < at.index("Keep in mind") / len(at) < 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (60, 60), "words": 20}, "2 pass-keys of 20 words need .* but a text has only 60"),
        ({"lengths": (9000, 9000)}, "the haystack has only"),
        ({"lengths": (20, 10)}, "smallest and the largest"),
        ({"keys": 0}, "1 to 1000 pass-keys of at least 1 word; got 0 of 4"),
        ({"depths": (0.5, 0.5)}, "two ascending fractions"),
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"split": "selection"}, "does not survive tokenisation"),  # words that the tokenizer lacks
    ],
)
def test_impossible_texts_are_refused(model, options, message):
    with pytest.raises(HeadwiseError, match=message):
        texts_for(model, **options)


@pytest.mark.parametrize("labels", [(False, False), (True, False), (False, True, True)])
def test_labels_must_fit(labels):
    with pytest.raises(PromptError, match="as many labels as ids, at least one of them true, and not the first"):
        LabelledText((1, 2), labels)


# ---- the search

SMALL = {"steps": 20, "rate": 0.15, "sinks": 4, "recent": 16}


@pytest.mark.parametrize(
    ("layers", "heads", "layer", "head", "kv_heads", "mix", "form"),
    [(2, 4, 1, 2, 2, "teacher", "mean"), (3, 4, 2, 0, 4, "self", "group")],
)
@pytest.mark.slow
def test_the_planted_head_is_found(layers, heads, layer, head, kv_heads, mix, form):
    model = planted(layers, heads, layer, head, kv_heads)
    scores = gate_scores(model, texts_for(model), Gates(**SMALL, mix=mix, form=form))
    own = head // (heads // kv_heads)
    gates = kv_gates(scores, layers, heads, kv_heads, "planted")
    others = np.delete(gates.ravel(), layer * kv_heads + own)
    assert gates[layer, own] > 0.8
    assert others.max() < (0.5 if form == "mean" else 0.8)
    assert (scores.score, scores.shape) == ("gate", (layers, heads))


@pytest.mark.slow
def test_a_run_is_decided_by_its_options(model):
    texts = texts_for(model)
    options = Gates(**SMALL | {"steps": 6})
    reports = []
    first = gate_scores(model, texts, options, lambda *done: reports.append(done))
    again = gate_scores(model, texts, options)
    assert json.dumps(to_json(first)) == json.dumps(to_json(again))
    assert not np.array_equal(first.values, gate_scores(model, texts, Gates(**SMALL | {"steps": 6, "seed": 1})).values)
    assert [done for done, *_ in reports] == [1, 2, 3, 4, 5, 6]
    made = first.provenance
    assert [len(values) for values in made["losses"].values()] == [6, 6]
    assert made["losses"]["distillation"][0] == 0  # all gates start at 1
    assert made["losses"]["penalty"][0] == 1
    assert first.tables["mean_gates"].shape == (2, 2)
    assert made["label_tokens_right"] > 0.8
    assert (made["options"]["recent"], made["texts"], made["kv_heads"]) == (16, 3, 2)
    read = from_json(json.loads(json.dumps(to_json(first))), None)
    assert read == first


@pytest.mark.parametrize("stopped", [3, 4, 6])
@pytest.mark.slow
def test_an_interrupted_search_ends_as_a_whole_one(model, tmp_path, monkeypatch, stopped):
    """Stopped between two kept states, right after one, and after the last step; every step after the kept one is made again."""
    monkeypatch.setattr(gates_module, "SAVED", 2)
    options = Gates(**SMALL | {"steps": 6})
    texts, whole = texts_for(model), gate_scores(model, texts_for(model), options)

    def stop(done, total, remark):
        if done == stopped:
            raise KeyboardInterrupt

    parts = RunDirectory(tmp_path / "run", describe_run(model, texts, options))
    with pytest.raises(KeyboardInterrupt):
        gate_scores(model, texts, options, stop, parts)
    reports = []
    resumed = gate_scores(model, texts, options, lambda *done: reports.append(done[0]), parts)
    assert json.dumps(to_json(resumed)) == json.dumps(to_json(whole))
    assert reports == list(range(stopped // 2 * 2 + 1, 7))


@pytest.mark.slow
def test_one_gate_per_layer(model):
    scores = gate_scores(model, texts_for(model), Gates(**SMALL, per="layer"))
    assert (scores.values == scores.values[:, :1]).all()
    assert scores.values[1, 0] > 0.8 > 0.5 > scores.values[0, 0]


def test_the_first_steps_are_those_of_plain_adam(model):
    """With no distillation loss yet, Adam moves every gate by the learning rate: 1 - 0.1 x rate, then as far again."""
    scores = gate_scores(model, texts_for(model), Gates(**SMALL | {"steps": 1}))
    assert scores.values == pytest.approx(np.full((2, 4), 1 - 0.15), abs=1e-4)  # one step is all peak
    slow_start = gate_scores(model, texts_for(model), Gates(**SMALL | {"steps": 2, "rate": 0.001}))
    assert slow_start.tables["mean_gates"] == pytest.approx(1 - 0.0005, abs=1e-5)


def tiny_texts(length, count=1):
    rng = np.random.default_rng(0)
    return [
        LabelledText(tuple(rng.integers(2, 96, length).tolist()), (False,) * (length - 2) + (True, True)) for _ in range(count)
    ]


def tiny(family="llama"):
    model = tiny_model(family)
    return Model(model, character_tokenizer())


def test_the_search_is_that_of_the_released_code_written_out():
    """A doubled batch, the loss over the rows that predict labels, Adam by hand, clamping before every step."""
    model, text = tiny(), tiny_texts(60)[0]
    options = Gates(steps=9, rate=0.3, sinks=4, recent=8, penalty=0.5, min_right=0)
    scores = gate_scores(model, [text], options)
    gates, averaged, losses = slow.search(
        model.hf, torch.tensor([text.ids]), [57, 58], steps=9, rate=0.3, sinks=4, recent=8, weight=0.5
    )
    assert kv_gates(scores, 4, 8, 2, "tiny") == pytest.approx(gates.double().numpy(), abs=2e-4)
    assert scores.tables["mean_gates"] == pytest.approx(averaged.double().numpy(), abs=2e-4)
    found = np.transpose([scores.provenance["losses"][name] for name in ("distillation", "penalty")])
    assert found == pytest.approx(np.asarray(losses), rel=2e-3, abs=1e-9)
    assert gates.min() < 0.2 < 1 < gates.max()  # the last step is not clamped


def test_layers_without_full_attention_have_no_gate():
    scores = gate_scores(tiny("gemma2"), tiny_texts(60), Gates(steps=2, sinks=4, recent=8, min_right=0))
    assert np.isnan(scores.values).all(axis=1).tolist() == [True, False, True, False]
    assert scores.provenance["layers_left_out"] == [0, 2]
    assert np.isfinite(scores.values[1]).all()


@pytest.mark.parametrize(
    ("family", "length", "options", "message"),
    [
        ("llama", 60, {}, r"predicts 0% of the label tokens by itself, so its gates would fit noise"),
        ("llama", 35, {"min_right": 0}, r"at least 3 x \(sinks \+ recent\) = 36 tokens .* got 35 to 35"),
        ("llama", 300, {"min_right": 0}, "fit the model's 256 positions; got 300 to 300"),
        ("mistral", 60, {"min_right": 0}, "no layer with full attention"),
    ],
)
def test_what_cannot_be_found_is_refused(family, length, options, message):
    with pytest.raises(HeadwiseError, match=message):
        gate_scores(tiny(family), tiny_texts(length), Gates(steps=2, sinks=4, recent=8, **options))


def test_gates_need_texts():
    with pytest.raises(HeadwiseError, match="got none"):
        gate_scores(tiny(), [], Gates())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "sum"}, "unknown form 'sum'; use mean or group"),
        ({"mix": "both"}, "unknown mix 'both'; use teacher or self"),
        ({"per": "query head"}, "unknown per 'query head'; use head or layer"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"sinks": 0}, "sinks must be a whole number of at least 1"),
        ({"recent": 0}, "recent must be a whole number of at least 1"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"penalty": -1.0}, "penalty not below"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(HeadwiseError, match=message):
        Gates(**options)
