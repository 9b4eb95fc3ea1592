"""What the baselines keep, against slow references written from the papers, with the mistakes of other code as counter-examples."""

import numpy as np
import pytest
import torch

from headwise.caches.allocation import Pyramid
from headwise.caches.controls import Full, Oracle, RandomTokens
from headwise.caches.kept_cache import compress
from headwise.caches.kept_layer import Keep
from headwise.heads import HeadScores, HeadwiseError
from headwise.methods.adakv.press import AdaKV
from headwise.methods.headkv.press import HeadKV
from headwise.methods.pyramidkv.press import PyramidKV
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.testing.tiny import tiny_model
from tests.reference import baselines as slow

LENGTH, BUDGET = 120, 30
LAYERS, HEADS, KV_HEADS = 4, 8, 2
SIZES = {"budget": BUDGET, "window": 6, "sinks": 3}


class Recorder(Full):
    """What each layer looks like at the end of the prefill."""

    def kept(self, view):
        views[view.layer] = view
        return [Keep()]


views = {}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, 96, (1, LENGTH), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def scores(model, ids):
    """[layer][query head][position] by the slow reference."""
    with compress(model, Recorder()) as cache:
        cache.prefill(ids)
    return [
        slow.window_scores(views[i].query[0], views[i].keys[0], rows=6, window=6, kernel=5, scaling=views[i].scaling)
        for i in range(LAYERS)
    ]


def kept(model, ids, press, row=0):
    """[layer][KV head] sets of positions."""
    with compress(model, press) as cache:
        cache.prefill(ids)
        return [[set(own.tolist()) for own in heads] for heads in cache.held_positions(row).values()]


def head_scores(seed=0, shape=(LAYERS, HEADS)):
    return HeadScores(np.random.default_rng(seed).random(shape) ** 4, "copy")


def presses():
    return {
        "streamingllm": StreamingLLM(**SIZES),
        "snapkv": SnapKV(**SIZES),
        "pyramidkv": PyramidKV(**SIZES, beta=2),
        "adakv": AdaKV(**SIZES),
        "headkv": HeadKV(**SIZES, heads=head_scores()),
        "random": RandomTokens(**SIZES),
        "oracle": Oracle(**SIZES, positions=(50, 51)),
    }


@pytest.mark.parametrize("name", presses())
def test_sinks_and_window_are_always_kept_and_the_total_is_the_budget(model, ids, name):
    found = kept(model, ids, presses()[name])
    always = {*range(3), *range(LENGTH - 6, LENGTH)}
    assert all(always <= own for heads in found for own in heads)
    assert sum(len(own) for heads in found for own in heads) == BUDGET * LAYERS * KV_HEADS
    if name not in ("streamingllm", "oracle"):  # those look at nothing that differs between heads
        assert len({frozenset(own) for heads in found for own in heads}) > 1


def test_streaming_llm_keeps_the_first_and_the_most_recent(model, ids):
    found = kept(model, ids, StreamingLLM(budget=BUDGET))
    expected = {*range(4), *range(LENGTH - BUDGET + 4, LENGTH)}
    assert found == [[expected] * KV_HEADS] * LAYERS
    inverted = {*range(BUDGET - 8), *range(LENGTH - 8, LENGTH)}  # what CompressKV's released baseline keeps
    assert expected != inverted


def test_snapkv_keeps_what_the_reference_keeps(model, ids, scores):
    found = kept(model, ids, SnapKV(**SIZES))
    for layer in range(LAYERS):
        right = [slow.best(own, BUDGET, 3, 6) for own in slow.grouped(scores[layer], KV_HEADS)]
        assert found[layer] == right
        assert found[layer] != [slow.best(own, BUDGET, 3, 6) for own in slow.misgrouped(scores[layer], KV_HEADS)]


def test_pyramidkv_has_the_shares_of_the_paper_and_snapkv_s_choice(model, ids, scores):
    press = PyramidKV(**SIZES, beta=2)
    found = kept(model, ids, press)
    counts = [len(heads[0]) for heads in found]
    assert np.abs(np.array(counts) - slow.pyramid_shares(LAYERS, BUDGET, 2)).max() < 1
    assert counts == sorted(counts, reverse=True)
    for layer, count in enumerate(counts):
        assert found[layer] == [slow.best(own, count, 3, 6) for own in slow.grouped(scores[layer], KV_HEADS)]
    with compress(model, press) as cache:  # budgets follow each prompt's length
        for length in (LENGTH, 60):
            cache.reset()
            cache.prefill(ids[:, :length])
            assert [len(own[0]) for own in cache.held_positions().values()] == counts
    assert PyramidKV(budget=64).allocation == Pyramid(20)


@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
def test_adakv_shares_a_layer_s_budget_by_score(model, ids, scores, floor):
    found = kept(model, ids, AdaKV(**SIZES, floor=floor))
    for layer in range(LAYERS):
        own = slow.grouped(scores[layer], KV_HEADS)
        counts = slow.adaptive_counts(own, BUDGET, floor, 3, 6)
        assert [len(heads) for heads in found[layer]] == counts
        assert found[layer] == [slow.best(head, count, 3, 6) for head, count in zip(own, counts, strict=True)]
    unequal = [len({len(heads) for heads in layer}) > 1 for layer in found]
    assert any(unequal) == (floor < 1)


@pytest.mark.parametrize("beta", [1.0, 1.2, 5.0])
def test_headkv_shares_the_whole_budget_by_the_scores_of_heads(model, ids, scores, beta):
    given = head_scores()
    found = kept(model, ids, HeadKV(**SIZES, heads=given, beta=beta))
    of_groups = given.values.reshape(LAYERS, KV_HEADS, -1).mean(axis=2)
    shares = np.array(slow.head_shares(of_groups.tolist(), BUDGET, beta))
    counts = np.array([[len(own) for own in heads] for heads in found])
    if shares.min() >= 9:  # nothing lies below what every head keeps
        assert np.abs(counts - shares).max() < 1
    assert counts.min() >= 9
    order = np.argsort(of_groups, axis=None)
    assert (np.diff(counts.flatten()[order]) >= 0).all()
    for layer in range(LAYERS):
        own = slow.grouped(scores[layer], KV_HEADS)
        assert found[layer] == [slow.best(head, count, 3, 6) for head, count in zip(own, counts[layer], strict=True)]


def test_headkv_nears_even_budgets_with_beta(model, ids):
    spread = [
        np.ptp([len(own) for heads in kept(model, ids, HeadKV(**SIZES, heads=head_scores(), beta=b)) for own in heads])
        for b in (1, 2, 50)
    ]
    assert spread[0] > spread[1] > spread[2]


def reference_of_released(model, ids, given, **sizes):
    """[layer][query head] sets of positions."""
    with compress(model, Recorder()) as cache:
        cache.prefill(ids)
    return [
        slow.released_headkv(view.query[0], view.keys[0], given.values.tolist(), layer, scaling=view.scaling, **sizes)
        for layer, view in sorted(views.items())
    ]


@pytest.mark.parametrize("beta", [1.0, 1.2, 5.0])
def test_the_released_headkv_chooses_by_query_heads(beta):
    """With as many KV heads as query heads what is held is the choice itself."""
    model = tiny_model("llama", num_key_value_heads=HEADS)
    ids, given = torch.randint(2, 96, (1, LENGTH), generator=torch.Generator().manual_seed(6)), head_scores(3)
    found = kept(model, ids, HeadKV(budget=BUDGET, window=6, heads=given, beta=beta, preset="released"))
    right = reference_of_released(model, ids, given, budget=BUDGET, window=6, beta=beta)
    assert found == right
    counts = np.array([[len(own) for own in heads] for heads in right])
    assert abs(counts.mean() - BUDGET) < 0.5 or counts.max() == LENGTH  # what a head cannot use is not given to others
    grouped = kept(model, ids, HeadKV(budget=BUDGET, window=6, heads=given, beta=beta))
    assert grouped != found


def test_in_groups_the_released_headkv_holds_what_any_query_head_chose(model, ids):
    given = head_scores(3)
    found = kept(model, ids, HeadKV(budget=BUDGET, window=6, heads=given, preset="released"))
    right = reference_of_released(model, ids, given, budget=BUDGET, window=6, beta=1.2)
    each = HEADS // KV_HEADS
    for layer in range(LAYERS):
        unions = [set().union(*right[layer][g * each : (g + 1) * each]) for g in range(KV_HEADS)]
        assert found[layer] == unions
    sizes = [len(own) for heads in found for own in heads]
    assert max(sizes) > BUDGET  # more than one query head's budget


def test_the_released_headkv_of_a_padded_row_is_that_of_the_row_alone(model, ids):
    press = HeadKV(budget=BUDGET, window=6, heads=head_scores(3), preset="released")
    short = ids[:, : LENGTH - 20]
    mask = torch.ones(2, LENGTH, dtype=torch.int64)
    mask[0, :20] = 0
    with compress(model, press) as cache:
        cache.prefill(torch.cat([torch.cat([torch.ones(1, 20, dtype=torch.int64), short], 1), ids]), mask)
        rows = [[[set(own.tolist()) for own in heads] for heads in cache.held_positions(row).values()] for row in range(2)]
    assert rows == [kept(model, short, press), kept(model, ids, press)]


def test_presets_of_headkv(model):
    press = HeadKV(budget=BUDGET, heads=head_scores(), preset="released")
    assert (press.sinks, press.kernel, press.window) == (0, 7, 8)
    assert HeadKV(budget=BUDGET, heads=head_scores()).preset == "grouped"
    scores = torch.tensor([[0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]])
    assert press.smoothed(scores).tolist() == [[3.0, 3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0]]


def test_random_tokens_are_a_function_of_the_seed_and_the_position(model, ids):
    one, again, other = (kept(model, ids, RandomTokens(**SIZES, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other
    assert len({frozenset(own) for heads in one for own in heads}) == LAYERS * KV_HEADS
    shorter = torch.cat([torch.ones(1, 20, dtype=torch.int64), ids[:, : LENGTH - 20]], dim=1)
    mask = (torch.arange(LENGTH) >= 20).long()[None].repeat(2, 1)
    mask[1] = 1
    with compress(model, RandomTokens(**SIZES, seed=1)) as cache:
        cache.prefill(torch.cat([shorter, ids]), mask)
        rows = [[set(own.tolist()) for own in cache.held_positions(row)[2]] for row in range(2)]
    assert rows[0] == kept(model, ids[:, : LENGTH - 20], RandomTokens(**SIZES, seed=1))[2]
    assert rows[1] == one[2]


def test_random_tokens_favour_no_place(model, ids):
    counts = np.zeros(LENGTH)
    for seed in range(40):
        for heads in kept(model, ids, RandomTokens(**SIZES, seed=seed)):
            for own in heads:
                counts[list(own)] += 1
    middle = counts[3:-6] / (40 * LAYERS * KV_HEADS)
    assert abs(middle[:50].mean() - middle[-50:].mean()) < 0.02
    assert abs(middle.mean() - (BUDGET - 9) / (LENGTH - 9)) < 1e-9


def test_the_oracle_keeps_what_it_is_told(model, ids):
    answer = (20, 21, 22, 70)
    expected = {*range(3), *answer, *range(LENGTH - BUDGET + 7, LENGTH)}
    assert kept(model, ids, Oracle(**SIZES, positions=answer)) == [[expected] * KV_HEADS] * LAYERS
    many = tuple(range(10, 60))  # more than the budget holds: the latest of them
    assert kept(model, ids, Oracle(**SIZES, positions=many))[0][0] == {*range(3), *range(60 - 21, 60), *range(LENGTH - 6, LENGTH)}
    assert kept(model, ids, Oracle(**SIZES, positions=())) == kept(model, ids, StreamingLLM(**SIZES))


def test_full_keeps_everything(model, ids):
    assert kept(model, ids, Full()) == [[set(range(LENGTH))] * KV_HEADS] * LAYERS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StreamingLLM(), "give either budget"),
        (lambda: StreamingLLM(budget=9), "use 12 or more"),
        (lambda: PyramidKV(budget=64, kernel=4), "odd number"),
        (lambda: RandomTokens(budget=64, seed=-1), "seed must be 0 or more; got -1"),
        (lambda: AdaKV(budget=64, floor=1.5)(tiny_model("llama")).__enter__(), r"floor of adaptive budgets must lie in \[0, 1\]"),
        (lambda: PyramidKV(budget=64, beta=0.5)(tiny_model("llama")).__enter__(), "beta must be at least 1"),
        (lambda: HeadKV(budget=64, heads=head_scores(), beta=0.5)(tiny_model("llama")).__enter__(), "beta must be at least 1"),
        (
            lambda: HeadKV(budget=64, heads=head_scores(), preset="ours"),
            "unknown preset 'ours' of headkv; use grouped or released",
        ),
        (lambda: HeadKV(budget=64, heads=head_scores(), preset="released", sinks=2), "the released form of headkv has sinks 0"),
        (lambda: HeadKV(budget=64, heads=head_scores(), preset="released", kernel=3), "the released form of headkv has kernel 7"),
        (
            lambda: HeadKV(budget=64, heads=head_scores(), preset="released", beta=0.5)(tiny_model("llama")).__enter__(),
            "beta must be at least 1",
        ),
        (
            lambda: HeadKV(budget=64, heads=head_scores(shape=(2, 8)))(tiny_model("llama")).__enter__(),
            "these head scores belong to a model of 2 lay",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(HeadwiseError, match=message):
        make()


@pytest.mark.parametrize("positions", [(LENGTH,), (-1, 5)])
def test_the_oracle_refuses_places_outside_of_the_prompt(model, ids, positions):
    with pytest.raises(HeadwiseError, match=f"a prompt of {LENGTH} tokens"):
        kept(model, ids, Oracle(**SIZES, positions=positions))


@pytest.mark.parametrize("name", [name for name in presses() if name != "headkv"])
def test_a_press_prints_as_the_call_that_makes_it(name):
    from headwise.caches.allocation import Uniform  # noqa: F401  # used by the printed call

    press = presses()[name]
    assert eval(repr(press), globals() | locals()) == press
