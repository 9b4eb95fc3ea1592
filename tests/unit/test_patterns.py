"""Layer-exclusive patterns: closed forms against all choices, a search against all choices, and gates that DuoAttention has published."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headwise.caches.gated import streaming_loss
from headwise.caches.groups import Window
from headwise.heads import HeadScores, HeadwiseError, load_heads
from headwise.maths.gates import binarise, kept_count
from headwise.methods.duo.order import with_layer_order
from headwise.methods.duo.prompts import LabelledText
from headwise.methods.zigzag.formula import layer_pattern
from headwise.methods.zigzag.press import ZigzagAttention
from headwise.models.model import Model, as_model
from headwise.testing.tiny import tiny_model
from tests.reference import gates as slow

FILE = Path(__file__).parents[1] / "data/published-head-scores/duo-attention/Mistral-7B-Instruct-v0.2/full_attention_heads.tsv"
TABLES = arrays(np.int64, (6, 4), elements=st.integers(-2, 1002), unique=True).map(lambda numbers: numbers / 1000)
KEEPS = st.sampled_from([0.01, 0.2, 0.34, 0.5, 0.8, 1.0])


@given(TABLES, KEEPS)
def test_z1_gives_up_least_gate_mass(gates, keep):
    pattern = layer_pattern(gates, keep)
    count = kept_count(keep, 6)
    masses = gates.clip(0, 1).sum(axis=1)
    assert pattern.kept.sum() == count
    assert masses[pattern.kept].sum() == pytest.approx(np.sort(masses)[::-1][:count].sum())
    assert np.isnan(pattern.cut) if count == 6 else pattern.cut == pytest.approx(masses[~pattern.kept].max() / 4)


@given(TABLES, KEEPS)
def test_z2_changes_fewest_heads(gates, keep):
    count = kept_count(keep, 6)
    heads = binarise(gates, count / 6).kept
    assert heads.sum() == 4 * count
    chosen = set(np.flatnonzero(layer_pattern(gates, keep, "Z2").kept).tolist())
    assert len(chosen) == count
    assert slow.heads_changed(heads.tolist(), chosen) == slow.fewest_changed(heads.tolist(), count)


def test_ties_go_to_the_higher_mean_gate_then_to_the_lower_layer():
    gates = np.array([[0.9, 0.1], [0.2, 0.8], [0.95, 0.05], [0.85, 0.3]])
    pattern = layer_pattern(gates, 0.5, "Z2")  # every layer has one of the four retrieval heads
    assert pattern.kept.tolist() == [True, False, False, True]
    assert pattern.tied == 2
    equal = np.array([[0.5, 0.5], [0.25, 0.75], [0.1, 0.1]])
    assert layer_pattern(equal, 0.34).kept.tolist() == [True, False, False]
    assert layer_pattern(equal, 0.34).tied == 1
    assert layer_pattern(equal, 0.66).tied == 0


def test_z3_takes_gates_of_layers():
    gates = np.array([[0.2, 0.2], [0.9, 0.9], [0.4, 0.4]])
    assert layer_pattern(gates, 0.34, "Z3").kept.tolist() == [False, True, False]
    assert layer_pattern(gates[:, :1], 0.34, "Z3").kept.tolist() == [False, True, False]
    with pytest.raises(HeadwiseError, match="Z3 takes gates that were found one per layer"):
        layer_pattern(np.array([[0.2, 0.3], [0.9, 0.9]]), 0.5, "Z3")


def test_z4_chooses_as_z1():
    gates = np.random.default_rng(0).random((6, 4))
    assert np.array_equal(layer_pattern(gates, 0.5, "Z4").kept, layer_pattern(gates, 0.5, "Z1").kept)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 3, 5, 6])
def test_z5_takes_the_cheapest_layer_each_time(seed, count):
    """Costs that interact: what a layer costs depends on the others that stream."""
    rng = np.random.default_rng(seed)
    single, pairs = rng.random(6), rng.random((6, 6))
    calls = []

    def loss(kept):
        calls.append(kept.copy())
        gone = ~kept
        return float(single[gone].sum() + pairs[np.ix_(gone, gone)].sum())

    pattern = layer_pattern(np.ones((6, 2)), count / 6, "Z5", loss)
    assert len(calls) == (6 - count) * (6 + count + 1) // 2
    kept = [True] * 6
    while sum(kept) > count:
        costs = {i: loss(np.array([k and j != i for j, k in enumerate(kept)])) for i in range(6) if kept[i]}
        kept[min(costs, key=costs.get)] = False
    assert pattern.kept.tolist() == kept
    assert pattern.tied == 0


def test_z5_ties_keep_the_higher_gate_and_the_lower_layer():
    pattern = layer_pattern(np.array([[0.5], [0.9], [0.5], [0.2]]), 0.5, "Z5", lambda kept: 1.0)
    assert pattern.kept.tolist() == [True, True, False, False]
    assert pattern.tied == 2


def gate_scores(model, seed=3, tables=None, **provenance):
    (layers, heads), kv_heads = as_model(model).heads.shape, as_model(model).heads.kv_heads
    values = np.random.default_rng(seed).random((layers, kv_heads))
    return HeadScores(np.repeat(values, heads // kv_heads, axis=1), "gate", provenance=provenance, tables=tables or {})


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_one_measured_order_serves_every_share(family):
    """The layers that rule Z5 finds for each `keep`, from one search; gemma2: only layers with full attention are ordered."""
    hf = tiny_model(family)
    model, full = Model(hf, None), as_model(hf).heads.full_layers
    made = torch.Generator().manual_seed(5)
    texts = [
        LabelledText(tuple(torch.randint(2, 96, (30,), generator=made).tolist()), (False,) * 20 + (True,) * 10) for _ in range(2)
    ]
    rows = [(torch.tensor([text.ids]), text.places) for text in texts]
    calls = []
    gates = with_layer_order(model, gate_scores(hf, options="kept"), texts, Window(2, 4), lambda *done: calls.append(done[:2]))
    assert calls[-1] == (len(calls), len(calls))
    assert len(calls) == (len(full) - 1) * (len(full) + 2) // 2
    assert sorted(np.argsort(gates.tables["layer_order"])[: len(full)].tolist()) == full
    assert gates.provenance["options"] == "kept"
    table, loss = gates.values[full][:, :: gates.shape[1] // as_model(hf).heads.kv_heads], streaming_loss(hf, rows, Window(2, 4))
    for count in range(1, len(full) + 1):
        keep = count / len(full)
        expected, found = (
            layer_pattern(table, keep, "Z5", loss),
            ZigzagAttention(gates, keep, rule="Z5").pattern(as_model(hf)),
        )
        assert found.kept.tolist() == expected.kept.tolist()
        assert found.cut == pytest.approx(expected.cut, nan_ok=True)


def test_rule_z5_needs_an_order_of_this_model():
    model = tiny_model("llama")
    with pytest.raises(HeadwiseError, match=r"for rule Z5, gates with a measured order of layers"):
        ZigzagAttention(gate_scores(model), rule="Z5")
    with pytest.raises(
        HeadwiseError, match=r"order of layers \[1, 0\] is none of llama, whose layers with full attention are \[0, 1, 2, 3\]"
    ):
        ZigzagAttention(gate_scores(model, tables={"layer_order": [1, 0, np.nan, np.nan]}), rule="Z5").pattern(as_model(model))


def test_published_gates_of_mistral():
    """The method card's numbers for Mistral-7B-Instruct-v0.2, computed from the same file by other code."""
    gates = load_heads(FILE).values
    assert gates.shape == (32, 8)
    assert (gates == 1).sum() == 110
    quarter, half = binarise(gates, 0.25), binarise(gates, 0.5)
    assert (quarter.kept.sum(), quarter.tied) == (64, 64)  # all of them a draw among gates of exactly 1
    assert (half.kept.sum(), half.tied) == (128, 18)
    assert half.high_cut
    clamped = gates.clip(0, 1)
    layers = {rule: layer_pattern(gates, 0.5, rule).kept for rule in ("Z1", "Z2")}
    changed = {rule: (half.kept != kept[:, None]).mean() for rule, kept in layers.items()}
    assert changed == {"Z1": pytest.approx(0.36, abs=0.005), "Z2": pytest.approx(0.34, abs=0.005)}
    assert clamped[half.kept].sum() / clamped.sum() == pytest.approx(0.541, abs=5e-4)
    assert clamped[layers["Z1"]].sum() / clamped.sum() == pytest.approx(0.536, abs=5e-4)


@pytest.mark.parametrize(
    ("gates", "keep", "rule", "loss", "message"),
    [
        (np.eye(3), 0.5, "Z6", None, "unknown rule 'Z6' for layers; use Z1, Z2, Z3, Z4, Z5"),
        (np.eye(3), 0.5, "Z5", None, "Z5 measures a loss and needs one"),
        (np.eye(3), 0.5, "Z1", lambda kept: 0.0, "the others take none; got rule Z1"),
        (np.eye(3), 0.5, "Z5", lambda kept: float("nan"), "not a finite number"),
        (np.eye(3), 0.5, "Z1", None, r"all 3 layers have the same mean gate \(0.333333\)"),
        (np.arange(6).reshape(3, 2) / 6, 0.0, "Z1", None, r"must lie in \(0, 1\]; got 0"),
        (np.arange(6).reshape(3, 2) / 6, 1.1, "Z2", None, r"must lie in \(0, 1\]; got 1.1"),
        (np.array([[np.nan, 1], [0, 1]]), 0.5, "Z1", None, "table of finite gates"),
        (np.ones(3), 0.5, "Z1", None, "table of finite gates"),
        (np.empty((0, 2)), 0.5, "Z1", None, "one row per layer with full attention"),
    ],
)
def test_what_cannot_be_chosen_is_refused(gates, keep, rule, loss, message):
    with pytest.raises(HeadwiseError, match=message):
        layer_pattern(gates, keep, rule, loss)
