"""CompressKV: what is kept, against slow loops over captured queries and keys; the mistakes that it must not make; refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headwise.caches.allocation import ByLayer, Pyramid, Uniform
from headwise.caches.kept_cache import compress
from headwise.caches.kept_layer import View
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.methods.compresskv.press import CompressKV
from headwise.models.model import as_model
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache
from tests.reference.kept import continued
from tests.reference.semantic import slow_budgets, slow_kept, slow_scores, watched

PROMPT, REST = 48, 5
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def random_scores(shape, seed=0):
    return HeadScores(np.random.default_rng(seed).random(shape), "semantic")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, 96, (1, PROMPT + REST), generator=torch.Generator().manual_seed(1))


def held(model, press, ids):
    """Layer -> per KV head the positions in the order in which the cache holds them."""
    with compress(model, press) as cache:
        cache.prefill(ids[:, :PROMPT])
        found = {}
        for layer, kept in cache.kept_layers.items():
            found[layer] = [None] * cache.model.heads.kv_heads
            for group in kept.groups:
                for place, head in enumerate(range(cache.model.heads.kv_heads) if group.heads is None else group.heads.tolist()):
                    found[layer][head] = group.positions[0, min(place, group.positions.shape[1] - 1), : group.used].tolist()
        return found


def slow_held(hf, ids, chosen_of, budget_of, sinks=4, window=8, kernel=5):
    """The same by slow loops. chosen_of(layer, KV head): heads that choose for it."""
    model = as_model(hf)
    (calls,) = watched(hf, lambda m: m(input_ids=ids[:, :PROMPT], use_cache=False))
    found = {}
    for layer in model.heads.full_layers:
        query, keys, _, *how = calls[layer]
        found[layer] = []
        for group in range(model.heads.kv_heads):
            each = model.heads.shape[1] // model.heads.kv_heads
            scaling, softcap, sink_logits = how
            scores = slow_scores(
                query, keys, chosen_of(layer, group), window, kernel, scaling, lambda h, n=each: h // n, softcap, sink_logits
            )
            found[layer].append(slow_kept(scores, PROMPT, budget_of(layer), sinks, window))
    return found


def best(scores, layer, count):
    return [int(head) for head in np.argsort(-scores.values[layer], kind="stable")[:count]]


# ---- what is kept


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_oss"])
def test_kept_positions_are_those_of_slow_loops(family, ids):
    """Grouped heads, one KV head per query head, capped logits, sink logits."""
    model = tiny_model(family)
    scores = random_scores((4, 8))
    expected = slow_held(model, ids, lambda layer, group: best(scores, layer, 4), lambda layer: 20)
    assert held(model, CompressKV(scores, budget=20), ids) == expected
    assert all(len(positions) == 20 for rows in expected.values() for positions in rows)
    assert all(rows == [rows[0]] * len(rows) for rows in expected.values())  # one choice per layer


def test_options_change_what_the_slow_loops_change(model, ids):
    scores = random_scores((4, 8), 1)
    press = CompressKV(scores, budget=15, per_layer=2, window=5, kernel=3, sinks=0)
    expected = slow_held(model, ids, lambda layer, group: best(scores, layer, 2), lambda layer: 15, sinks=0, window=5, kernel=3)
    assert held(model, press, ids) == expected


def test_each_group_may_choose_by_its_own_heads(model, ids):
    """Layer 0: both groups have heads; layer 1: only group 1 has, so group 0 takes the mean of the layer."""
    heads = HeadSet.of([(0, 1), (0, 3), (0, 6), (1, 4), (1, 5), (2, 0), (3, 7)], (4, 8))
    chosen = {0: [1, 3, 6], 1: [4, 5], 2: [0], 3: [7]}

    def own(layer, group):
        return [head for head in chosen[layer] if head // 4 == group] or chosen[layer]

    expected = slow_held(model, ids, own, lambda layer: 18)
    assert held(model, CompressKV(heads, budget=18, sharing="group"), ids) == expected
    assert expected[0][0] != expected[0][1]
    assert expected[1][0] == expected[1][1]
    shared = slow_held(model, ids, lambda layer, group: chosen[layer], lambda layer: 18)
    assert held(model, CompressKV(heads, budget=18), ids) == shared != expected


def test_layer_errors_share_the_budget_out(model, ids):
    errors = (0.125, 0.5, 0.25, 0.125)
    scores = random_scores((4, 8))
    press = CompressKV(scores, budget=36, layer_errors=errors)
    assert press.allocation == ByLayer(errors)
    budgets = slow_budgets(errors, 36, 32)
    assert budgets == [34, 40, 36, 34]
    expected = slow_held(model, ids, lambda layer, group: best(scores, layer, 4), lambda layer: budgets[layer])
    assert held(model, press, ids) == expected
    assert replace(press, budget=40).allocation == ByLayer(errors)


@torch.no_grad()
@pytest.mark.parametrize("sharing", ["layer", "group"])
def test_the_answer_comes_from_what_is_kept(model, ids, sharing):
    press = CompressKV(random_scores((4, 8)), budget=20, sharing=sharing)
    with compress(model, press) as cache:
        cache.prefill(ids[:, :PROMPT])
        kept = {layer: [set(own.tolist()) for own in rows] for layer, rows in cache.held_positions().items()}
        got = model(input_ids=ids[:, PROMPT:], **with_cache(cache), use_cache=True).logits
    torch.testing.assert_close(got, continued(model, ids[:, :PROMPT], ids[:, PROMPT:], kept), **TOLERANCE)


@torch.no_grad()
def test_the_model_is_as_before(ids):
    model = tiny_model("llama")
    before, implementation = model(input_ids=ids).logits, model.config._attn_implementation
    with compress(model, CompressKV(random_scores((4, 8)), budget=20)) as cache:
        cache.prefill(ids)
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_prompt_no_longer_than_the_budget_is_kept_whole(model, ids):
    assert held(model, CompressKV(random_scores((4, 8)), budget=PROMPT), ids)[0] == [list(range(PROMPT))] * 2


# ---- mistakes of the released code


def planted_view(hf, looks, length=40, dtype=torch.float32, strength=6.0):
    """A layer in which query head h of every row of the window looks at the positions looks[h], and at all others evenly.

    Each position has a direction of its own, so that any head may look at any set of them.
    """
    model = as_model(hf)
    keys = torch.eye(length)[None, None].expand(1, model.heads.kv_heads, -1, -1).to(dtype)
    query = torch.zeros(1, model.heads.shape[1], length, length)
    for head, positions in looks.items():
        for position in positions:
            query[0, head, :, position] = strength
    positions = torch.arange(length, dtype=torch.int32)[None]
    return View(0, query.to(dtype), keys, keys, positions, 1.0, None, None, model)


def kept_by(press, view):
    places = press.kept(view)[0].places
    return [row.tolist() for row in places[0]]


def planted_press(heads, **options):
    everywhere = [(layer, head) for layer in range(4) for head in heads]
    return CompressKV(HeadSet.of(everywhere, (4, 8)), **{"budget": 8, "window": 2, "sinks": 1, "kernel": 1, **options})


def test_heads_belong_to_the_kv_head_that_they_read(model):
    """Card 4.1: the released baselines take heads j and j + KV heads ... for KV head j. Here KV head 0 is read by heads 0 to 3.

    Heads 0 and 1 look at 10 to 14, heads 4 and 5 at 20 to 24. Grouped wrongly (even heads, odd heads) both KV heads would get a mixture.
    """
    left, right = range(10, 15), range(20, 25)
    view = planted_view(model, {0: left, 1: left, 4: right, 5: right})
    own = kept_by(planted_press([0, 1, 4, 5], sharing="group"), view)
    assert own == [[0, *left, 38, 39], [0, *right, 38, 39]]
    scores = CompressKV(random_scores((4, 8)), budget=8, window=2, sinks=1, kernel=1).head_scores(view, None)
    wrong = scores.view(1, 4, 2, -1).mean(dim=1)  # (G, KV) in place of (KV, G)
    assert [sorted(row.topk(5).indices.tolist()) for row in wrong[0]] not in ([list(left), list(right)],)


def test_a_chosen_head_reads_its_own_keys(model):
    """Keys of the other KV head say something else: head 5 reads KV head 1 (5 // 4), not 5 % 2 or 0."""
    view = planted_view(model, {5: range(20, 25)})
    keys = view.keys.clone()
    keys[:, 0] = keys[:, 0].roll(7, dims=1)
    found = kept_by(planted_press([5]), view._replace(keys=keys))
    assert found == [[0, *range(20, 25), 38, 39]]


def test_heads_that_are_not_chosen_have_no_say(model):
    view = planted_view(model, {0: range(10, 15), **{h: range(25, 35) for h in range(1, 8)}}, strength=9.0)
    assert kept_by(planted_press([0]), view) == [[0, *range(10, 15), 38, 39]]


def test_the_cache_holds_positions_in_the_order_of_the_text(model, ids):
    """Not in the order of their scores (card 8)."""
    for sharing in ("layer", "group"):
        for rows in held(model, CompressKV(random_scores((4, 8)), budget=25, sharing=sharing), ids).values():
            assert all(positions == sorted(set(positions)) for positions in rows)


def test_the_first_positions_are_safe_from_the_zeros_of_the_pool(model):
    """All weight on position 0: averaged over the zeros in front of the text it gets no more than its neighbours do."""
    view = planted_view(model, {0: [0], 1: [20, 21, 22, 23, 24]}, strength=5.0)
    options = {"kernel": 5, "budget": 9, "window": 2}
    unprotected = planted_press([0, 1], sinks=0, **options)
    pooled = unprotected.scores(view)[0, 0]
    plain = planted_press([0, 1], sinks=0, **{**options, "kernel": 1}).scores(view)[0, 0]
    assert plain.argmax() == 0
    assert pooled[0] == pytest.approx(float(plain[:3].sum()) / 5)  # three neighbours, divided by five
    assert pooled[0] < pooled[22]
    alone = planted_press([1], sinks=0, **options)
    assert 0 not in kept_by(alone, view)[0]
    assert kept_by(planted_press([1], sinks=4, **options), view)[0][:4] == [0, 1, 2, 3]


def test_the_window_does_not_spread_into_its_neighbours(model):
    """The pool stops in front of the window: weight on the window itself must not lift the positions before it."""
    view = planted_view(model, {0: [38, 39]})
    scores = planted_press([0], kernel=5).scores(view)[0, 0]
    assert scores[36] < scores[20]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_make_ties(model, dtype):
    """Weights near 1 / 300 that differ by less than a rounding step of the model's dtype are still told apart."""
    length = 300
    generator = torch.Generator().manual_seed(3)
    view = planted_view(model, {}, length, dtype)
    nudges = (torch.rand(length, generator=generator) * 0.01).to(dtype)
    query = view.query.clone()
    query[:, :, -2:] = nudges
    view = view._replace(query=query)
    press = planted_press([0, 1, 2, 3, 4, 5, 6, 7], budget=50)
    exact = nudges[:-2].double()
    assert len(set(exact.tolist())) > 150
    weights = press.scores(view)[0, 0, :-2]
    assert len(set(weights.to(dtype).tolist())) < 20  # as many as the dtype would tell apart
    threshold = exact[1:].sort(descending=True).values[46]  # 50 less one sink and two of the window
    kept = kept_by(press, view)[0]
    assert {i for i in range(1, length - 2) if exact[i] > threshold} <= set(kept)
    assert all(exact[i] >= threshold for i in kept if 0 < i < length - 2)


def test_equal_scores_fill_the_budget_with_different_positions(model):
    """Nothing is looked at: all positions tie. Ordered, none twice, and the window and the sinks are there."""
    (kept,) = kept_by(planted_press([0, 7], budget=20), planted_view(model, {}))
    assert len(kept) == len(set(kept)) == 20
    assert kept == sorted(kept)
    assert {0, 38, 39} <= set(kept)


@torch.no_grad()
def test_rows_with_padding_keep_what_they_keep_alone(model, ids):
    press = CompressKV(random_scores((4, 8)), budget=20)
    padded = torch.cat([torch.full((1, 9), 1), ids[:, : PROMPT - 9]], dim=1)
    both, mask = torch.cat([ids[:, :PROMPT], padded]), torch.ones(2, PROMPT, dtype=torch.int64)
    mask[1, :9] = 0
    with compress(model, press) as cache:
        cache.prefill(both, mask)
        together = [cache.held_positions(row) for row in (0, 1)]
    for row, alone in enumerate((ids[:, :PROMPT], ids[:, : PROMPT - 9])):
        with compress(model, press) as cache:
            cache.prefill(alone)
            for layer, rows in cache.held_positions().items():
                assert [p.tolist() for p in together[row][layer]] == [p.tolist() for p in rows]


# ---- which heads


def test_the_best_heads_of_every_layer_choose_and_ties_go_to_the_lower_head():
    values = np.array([[0.1, 0.9, 0.5, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.3]])
    assert CompressKV(HeadScores(values, "semantic"), budget=20).chosen == {0: [1, 2, 3, 4], 1: [0, 1, 2, 5]}
    assert CompressKV(HeadScores(values, "semantic"), budget=20, per_layer=2).chosen == {0: [1, 2], 1: [0, 5]}
    holes = values.copy()
    holes[0, 1] = holes[1, :] = np.nan
    assert CompressKV(HeadScores(holes, "semantic"), budget=20, per_layer=2).chosen == {0: [2, 3]}
    some = HeadSet.of([(1, 5), (0, 3), (1, 0)], (2, 6))
    assert CompressKV(some, budget=20, per_layer=1).chosen == {0: [3], 1: [0, 5]}  # a set is taken as it is


def test_heads_of_layers_that_are_not_compressed_do_not_matter():
    """gemma3: layers 0 and 1 have a sliding window, so only layers 2 and 3 need a head."""
    model = as_model(tiny_model("gemma3_text"))
    CompressKV(HeadSet.of([(2, 0), (3, 1)], (4, 8)), budget=20).check(model)
    flat = np.zeros((4, 8))
    flat[2:] = np.random.default_rng(0).random((2, 8))
    CompressKV(HeadScores(flat, "semantic"), budget=20).check(model)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (
            HeadSet.of([(0, 1), (2, 3)], (4, 8)),
            r"no chosen head in 2 of the 4 layers to compress \(the first: layer 1\); give scores of the heads of all layers",
        ),
        (HeadSet((), (4, 8)), "no chosen head in 4 of the 4 layers"),
        (random_scores((4, 6)), "these heads belong to a model of 4 layers x 6 heads, but llama has 4 x 8"),
        (HeadSet.of([(layer, 0) for layer in range(3)], (3, 8)), "these heads belong to a model of 3 layers x 8 heads"),
        (
            HeadScores(np.array([[0.0] * 8, *np.eye(8)[:3]]), "copy"),
            r"all heads of layer 0 have the same score \(0\), so none of them are the best 4; take semantic scores",
        ),
        (HeadScores(np.array([[np.nan] * 8, *np.eye(8)[:3]]), "copy"), r"no chosen head in 1 of the 4 layers"),
    ],
)
def test_heads_that_do_not_fit_the_model_are_refused(model, heads, message):
    with pytest.raises(HeadwiseError, match=message) as error, compress(model, CompressKV(heads, budget=20)):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing": "head"}, "unknown sharing 'head'; use layer or group"),
        ({"per_layer": 0}, "per_layer must be at least 1 head; got 0"),
        ({"heads": [(0, 1)]}, "heads must be scores of heads, or a choice of heads \\(of a list: .*\\); got list"),
        ({"heads": HeadScores(np.zeros((4, 8)), "copy")}, "all 32 heads have the same copy score"),
        ({"layer_errors": (1.0,) * 4, "allocation": Pyramid()}, "give either layer_errors or an allocation, not both"),
        ({"budget": 11}, "a budget of 11 does not hold the 4 first and the 8 last positions"),
        ({"budget": None}, "give either budget"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(HeadwiseError, match=message):
        CompressKV(**{"heads": random_scores((4, 8)), "budget": 20, **options})


def test_layer_errors_of_another_model_are_refused(model):
    press = CompressKV(random_scores((4, 8)), budget=20, layer_errors=(0.5, 0.5))
    with pytest.raises(HeadwiseError, match="2 layer errors for a model of 4 layers"), compress(model, press):
        pass


def test_defaults_are_those_of_the_paper_with_the_first_four_positions_protected():
    press = CompressKV(random_scores((4, 8)), budget=256)
    assert (press.window, press.kernel, press.sinks, press.per_layer, press.sharing) == (8, 5, 4, 4, "layer")
    assert press.allocation == Uniform()
