"""Choosers without training, each against a slow loop over attention matrices of transformers."""

import pytest
import torch

from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.caches import choosers
from headwise.caches.roomy import RoomyLayer, roomy_cache
from headwise.caches.shared import fork
from headwise.caches.small_model import SmallModel
from headwise.caches.sparse_cache import sparse_decode
from headwise.heads import HeadSet, HeadwiseError
from headwise.models.forward import forward
from headwise.models.model import as_model
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache

LENGTH, STEPS, GROUPS = 21, 9, 2
CLOSE = {"atol": 1e-6, "rtol": 1e-5}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def ids():
    return 2 + torch.randint(0, 94, (1, LENGTH + STEPS), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def matrices(model, ids):
    """[layer][H, T, T] of the whole text."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        found = [layer[0] for layer in model(ids, output_attentions=True).attentions]
    model.set_attn_implementation("sdpa")
    return found


class Asked:
    """Step: asks a chooser at every layer of every step, while the model runs with full attention."""

    def __init__(self, chooser, model):
        self.chooser, self.found = chooser, {}
        chooser.start(as_model(model), as_model(model).heads.full_layers)

    def begin(self, now):
        self.step = now.before
        self.chooser.begin(now)

    def look(self, call: Call) -> None:
        if call.query.shape[2] == 1:
            scores = None if self.chooser.reads_all(call.layer) else self.chooser.scores(call, call.whole)
            self.found[self.step, call.layer] = scores if scores is None else scores.clone()
        self.chooser.look(call, call.whole)


def asked(chooser, model, ids):
    step, cache = Asked(chooser, model), roomy_cache(model.config)
    with attached(model) as plan, plan.running(step), torch.no_grad():
        forward(model, ids[:, :LENGTH], cache)
        for place in range(LENGTH, LENGTH + STEPS):
            forward(model, ids[:, place : place + 1], cache)
    return step.found


def group_max(rows):
    """[G, S] from [H, S], one number after another."""
    each = len(rows) // GROUPS
    return torch.tensor(
        [[max(float(rows[h, s]) for h in range(g * each, (g + 1) * each)) for s in range(rows.shape[1])] for g in range(GROUPS)]
    )


def layers(model):
    return as_model(model).heads.full_layers


def test_the_oracle_reads_the_rows_of_this_step(model, ids, matrices):
    for (step, layer), scores in asked(choosers.Oracle(), model, ids).items():
        torch.testing.assert_close(scores[0], group_max(matrices[layer][:, step, : step + 1]), **CLOSE)


def test_retrieval_heads_use_the_rows_of_the_step_before(model, ids, matrices):
    heads = HeadSet.of([(0, 1), (1, 6), (1, 2)], as_model(model).heads.shape)
    for (step, _), scores in asked(choosers.RetrievalHeads(heads), model, ids).items():
        slow = sum(matrices[head.layer][head.head, step - 1, :step] for head in heads)
        torch.testing.assert_close(scores[0, 0], slow, **CLOSE)


@pytest.mark.parametrize("chosen", [None, [(0, 1), (1, 6)]])
def test_every_nth_step_refreshes_the_mean_of_all_heads(model, ids, matrices, chosen):
    heads = None if chosen is None else HeadSet.of(chosen, as_model(model).heads.shape)
    found = asked(choosers.RefreshEvery(4, heads), model, ids)
    for (step, _), scores in found.items():
        full = (
            LENGTH - 1 + 4 * ((step - LENGTH + 1) // 4)
        )  # the last row that was read in full: the prompt's, and every fourth behind it
        if full == step:
            assert scores is None
            continue
        rows = torch.stack([matrices[i][:, full, : full + 1] for i in layers(model)])
        slow = rows.mean(dim=(0, 1))
        if chosen:
            slow = slow + torch.stack([rows[layers(model).index(a), b] for a, b in chosen]).mean(dim=0)
        torch.testing.assert_close(scores[0, 0], slow, **CLOSE)


def test_anchors_choose_for_the_layers_behind_them(model, ids, matrices):
    found = asked(choosers.AnchorLayers(2), model, ids)
    for (step, layer), scores in found.items():
        place = layers(model).index(layer)
        if place % 2 == 0:
            assert scores is None
        else:
            anchor = layers(model)[place - 1]
            torch.testing.assert_close(scores[0], group_max(matrices[anchor][:, step, : step + 1]), **CLOSE)


class Kept:
    """Step: keeps queries and keys."""

    def __init__(self):
        self.calls = {}

    def look(self, call):
        self.calls[call.layer] = (call.query.clone(), call.keys[0].clone(), call.scaling)


def queries_and_keys(model, ids):
    step = Kept()
    with attached(model) as plan, plan.running(step), torch.no_grad():
        forward(model, ids, roomy_cache(model.config))
    return step.calls


@pytest.mark.parametrize("threshold", [-1.0, 0.3, 1.0])
def test_the_previous_query_chooses_unless_it_has_turned(model, ids, threshold):
    calls, chooser = queries_and_keys(model, ids), choosers.PreviousQuery(threshold)
    turned = asked_of = 0
    for (step, layer), scores in asked(chooser, model, ids).items():
        query, keys, scaling = calls[layer]
        each = query.shape[1] // GROUPS
        rows = []
        for group in range(GROUPS):
            own = range(group * each, (group + 1) * each)
            cosine = sum(float(torch.cosine_similarity(query[0, h, step], query[0, h, step - 1], dim=0)) for h in own) / each
            at = step if cosine < threshold else step - 1
            turned, asked_of = turned + (at == step), asked_of + 1
            weights = [torch.softmax(keys[0, group, : step + 1] @ query[0, h, at] * scaling, dim=0) for h in own]
            rows.append(torch.stack(weights).amax(dim=0))
        torch.testing.assert_close(scores[0], torch.stack(rows), atol=1e-5, rtol=1e-4)
    assert chooser.corrected == pytest.approx(turned / asked_of)


def test_pages_bound_every_logit_inside(model, ids):
    calls, size = queries_and_keys(model, ids), 4
    for (step, layer), scores in asked(choosers.Pages(size), model, ids).items():
        query, keys, _ = calls[layer]
        each = query.shape[1] // GROUPS
        assert scores.shape[-1] == (step + 1) // size
        for group in range(GROUPS):
            for page in range(scores.shape[-1]):
                inside = keys[0, group, page * size : (page + 1) * size]
                low, high = inside.amin(dim=0), inside.amax(dim=0)
                bounds = [
                    sum(max(float(q * a), float(q * b)) for q, a, b in zip(query[0, h, step], low, high, strict=True))
                    for h in range(group * each, (group + 1) * each)
                ]
                assert float(scores[0, group, page]) == pytest.approx(max(bounds), abs=1e-4)
                largest = max(float((inside @ query[0, h, step]).max()) for h in range(group * each, (group + 1) * each))
                assert float(scores[0, group, page]) >= largest - 1e-5


def test_a_small_model_reads_the_same_tokens_first(model, ids):
    small = tiny_model("qwen2")
    small.set_attn_implementation("eager")
    with torch.no_grad():
        rows = torch.stack([layer[0] for layer in small(ids, output_attentions=True).attentions])
    small.set_attn_implementation("sdpa")
    for (step, _), scores in asked(SmallModel(small), model, ids).items():
        torch.testing.assert_close(scores[0, 0], rows[:, :, step, : step + 1].sum(dim=(0, 1)), atol=1e-5, rtol=1e-4)


def test_the_chooser_that_knows_nothing_is_not_used(model, ids):
    """Scores that are worst where attention is largest: the first sparse step sees it, and all later ones read everything."""

    class Wrong(choosers.Oracle):
        name, checked = "wrong", True

        def scores(self, call, whole):
            return -super().scores(call, whole)

    with attached(model), torch.no_grad():
        full, cache = [], roomy_cache(model.config)
        forward(model, ids[:, :LENGTH], cache)
        full = [forward(model, ids[:, i : i + 1], cache).logits for i in range(LENGTH, LENGTH + STEPS)]
    with sparse_decode(model, Wrong(), budget=10, sinks=1, recent=2) as cache, torch.no_grad():
        forward(model, ids[:, :LENGTH], cache)
        found = [forward(model, ids[:, LENGTH : LENGTH + 1], cache).logits]
        with pytest.warns(UserWarning, match="everything is read instead"):
            found.append(forward(model, ids[:, LENGTH + 1 : LENGTH + 2], cache).logits)
        found += [forward(model, ids[:, i : i + 1], cache).logits for i in range(LENGTH + 2, LENGTH + STEPS)]
    assert all(torch.equal(a, b) for a, b in zip(found, full, strict=True))
    assert cache.report()["recall"] < cache.report()["by_chance"] > cache.report()["mass"]


def test_a_good_chooser_is_used_after_one_full_step(model, ids):
    class Good(choosers.Oracle):
        checked = True

    with sparse_decode(model, Good(), budget=10, sinks=1, recent=2) as cache, torch.no_grad():
        for start, stop in [(0, LENGTH), *((i, i + 1) for i in range(LENGTH, LENGTH + STEPS))]:
            forward(model, ids[:, start:stop], cache)
    report = cache.report()
    assert report["recall"] > 0.8
    assert report["sparse_steps"] == STEPS - 1
    assert report["note"] == ""


ROW = 16 * 4  # bytes of one key of one KV head of the tiny model; it has 4 layers with 2 KV heads
SMALL_ROW = 4 * 2 * 2 * 8 * 4  # bytes of the keys and values of one position in the small model


def small_weights(small):
    """A step reads one row of its untied embedding, and all the rest."""
    return 4 * sum(weight.numel() for name, weight in small.named_parameters() if "embed_tokens" not in name)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda _: choosers.Streaming(), lambda length, _: 0),
        (lambda _: choosers.Random(), lambda length, _: 0),
        (lambda _: choosers.AnchorLayers(2), lambda length, _: 0),
        (lambda _: choosers.RefreshEvery(4), lambda length, _: 0),
        (lambda _: choosers.Oracle(), lambda length, _: 4 * 2 * length * ROW),
        (lambda _: choosers.PreviousQuery(), lambda length, _: 4 * 2 * length * ROW),
        (lambda _: choosers.Pages(4), lambda length, _: 4 * 2 * 2 * (length // 4) * ROW),
        (lambda _: choosers.RetrievalHeads([(0, 1), (1, 6), (1, 2), (1, 3)]), lambda length, _: (1 + 2) * length * ROW),
        (SmallModel, lambda length, small: small_weights(small) + length * SMALL_ROW),
    ],
)
def test_bytes_read_to_choose_are_counted(model, ids, make, expected):
    small = tiny_model("qwen2")
    with sparse_decode(model, make(small), budget=10, sinks=1, recent=2, check=False) as cache, torch.no_grad():
        for start, stop in [(0, LENGTH), *((i, i + 1) for i in range(LENGTH, LENGTH + STEPS))]:
            forward(model, ids[:, start:stop], cache)
    report = cache.report()
    wanted = sum(expected(length, small) for length in range(LENGTH + 1, LENGTH + STEPS + 1))
    assert report["bytes_chosen_by_per_step"] * report["sparse_steps"] == wanted


def test_a_step_that_reads_everything_reads_nothing_more_to_choose(model, ids):
    with sparse_decode(model, choosers.Oracle(), budget=LENGTH + STEPS, sinks=1, recent=2, check=False) as cache, torch.no_grad():
        for start, stop in [(0, LENGTH), (LENGTH, LENGTH + 1)]:
            forward(model, ids[:, start:stop], cache)
    assert cache.report()["bytes_chosen_by_per_step"] is None


def test_a_fork_of_a_roomy_cache_grows_alone(model, ids):
    with attached(model), torch.no_grad():
        cache = roomy_cache(model.config)
        forward(model, ids[:, :LENGTH], cache)
        twin = fork(cache)
        one = forward(model, ids[:, LENGTH : LENGTH + 1], cache).logits
        forward(model, ids[:, :1], twin)
        assert torch.equal(cache.layers[0].keys[:, :, :LENGTH], twin.layers[0].keys[:, :, :LENGTH])
        assert not torch.equal(cache.layers[0].keys[:, :, LENGTH], twin.layers[0].keys[:, :, LENGTH])
        cache.crop(-1)
        assert torch.equal(forward(model, ids[:, LENGTH : LENGTH + 1], cache).logits, one)


def test_a_roomy_layer_holds_what_a_dynamic_one_holds():
    layer, pieces = RoomyLayer(), [torch.randn(2, 3, n, 4) for n in (5, 1, 1, 400, 1)]
    for piece in pieces:
        keys, values = layer.update(piece, piece + 1)
    assert torch.equal(keys, torch.cat(pieces, dim=2))
    assert torch.equal(values, torch.cat(pieces, dim=2) + 1)
    layer.reorder_cache(torch.tensor([1, 0]))
    again = layer.update(pieces[1], pieces[1])[0]
    assert torch.equal(again, torch.cat([torch.cat(pieces, dim=2)[[1, 0]], pieces[1]], dim=2))
    layer.reset()
    assert layer.update(pieces[0][:1], pieces[0][:1])[0].shape == (1, 3, 5, 4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: choosers.PreviousQuery(2.0), "cosine"),
        (lambda: choosers.Pages(0), "page"),
        (lambda: choosers.AnchorLayers(1), "anchor"),
        (lambda: choosers.RefreshEvery(True), "full step"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make, said):
    with pytest.raises(HeadwiseError, match=said):
        make()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 36}, "37 or more"),
        ({"budget": 0}, "whole number from 1"),
        ({"budget": 64, "recent": 0}, "recent"),
        ({"budget": 64.0}, "whole number"),
        ({"budget": 64, "placement": "disk"}, "device, slots, host"),
    ],
)
def test_options_that_mean_nothing_are_refused(model, options, said):
    with pytest.raises(HeadwiseError, match=said), sparse_decode(model, choosers.Streaming(), **options):
        pass


def test_choosers_of_another_model_are_refused(model):
    other = HeadSet.of([(0, 1)], (3, 4))
    with pytest.raises(HeadwiseError), sparse_decode(model, choosers.RetrievalHeads(other), budget=64):
        pass
    with pytest.raises(HeadwiseError, match="the model itself"), sparse_decode(model, SmallModel(model), budget=64):
        pass
    with (
        pytest.raises(HeadwiseError, match="one sparse_decode block"),
        sparse_decode(model, choosers.Streaming(), budget=64),
        sparse_decode(model, choosers.Streaming(), budget=64),
    ):
        pass


def test_embeddings_cannot_be_read_by_a_small_model(model, ids):
    embedded = model.get_input_embeddings()(ids).detach()
    chooser = SmallModel(tiny_model("qwen2"))
    with sparse_decode(model, chooser, budget=64) as cache, pytest.raises(HeadwiseError, match="token ids"):
        model(inputs_embeds=embedded, **with_cache(cache))
