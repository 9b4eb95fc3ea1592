"""Layer errors: against an answer that is decoded step by step with two attentions per layer; what must hold; files; refusals."""

import json

import numpy as np
import pytest
import torch

from headwise.caches.kept_cache import compress
from headwise.caches.press import WindowPress
from headwise.heads import HeadFileError, HeadScores, HeadwiseError, load_heads
from headwise.methods.compresskv.layer_errors import LayerErrors, layer_errors
from headwise.methods.compresskv.press import CompressKV
from headwise.methods.snapkv.press import SnapKV
from headwise.models.model import Model, as_model, follow
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.reference.semantic import slow_kept, slow_layer_errors, slow_scores

BUDGET = 20


def random_heads(seed=0):
    return HeadScores(np.random.default_rng(seed).random((4, 8)), "semantic")


def random_model(family, **options):
    model = tiny_model(family, **options)
    return Model(model, character_tokenizer())


def texts(count, length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, 96, (count, length), generator=generator).tolist()


@pytest.fixture(scope="module")
def model():
    return random_model("llama")


@pytest.fixture(scope="module")
def press():
    return CompressKV(random_heads(), budget=BUDGET)


@pytest.fixture(scope="module")
def prompts():
    return texts(4, 60, 5)


@pytest.fixture(scope="module")
def answers():
    return texts(4, 7, 6)


# ---- the numbers


def projections(model):
    found = {}
    for layer in model.heads.full_layers:
        part = follow(model.modules[layer], model.family.output)
        weight = part.weight.T if model.family.query == "conv" else part.weight
        found[layer] = weight.detach(), None if part.bias is None else part.bias.detach()
    return found


def slow_choice(model, chosen_of, length):
    each = model.heads.shape[1] // model.heads.kv_heads

    def kept_of(layer, call):
        query, keys, _, scaling, softcap, sinks = call
        kept = []
        for group in range(model.heads.kv_heads):
            heads = chosen_of(layer, group)
            scores = slow_scores(query, keys, heads, 8, 5, scaling, lambda h: h // each, softcap, sinks)
            kept.append(slow_kept(scores, length, BUDGET, 4, 8))
        return kept

    return kept_of


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "gpt_oss", "phi3", "granite"])
def test_errors_are_those_of_decoding_step_by_step(family):
    """One block of rows over one pass against a cache that grows token by token; sliding layers are left out."""
    model = random_model(family)
    (prompt,), (answer,) = texts(1, 40, 1), texts(1, 5, 2)
    heads = random_heads()
    chosen = CompressKV(heads, budget=BUDGET).chosen
    found = layer_errors(model, CompressKV(heads, budget=BUDGET), [prompt], [answer], (BUDGET,))
    kept_of = slow_choice(model, lambda layer, group: chosen[layer], len(prompt))
    slow = slow_layer_errors(model.hf, prompt, answer, projections(model), kept_of)
    assert sorted(slow) == model.heads.full_layers
    for layer in range(4):
        wanted = slow.get(layer, np.nan)
        assert found.values[0, 0, layer] == pytest.approx(wanted, rel=3e-5, nan_ok=True)
        assert layer not in slow or 0.01 < wanted < 50


def test_a_choice_per_kv_head_is_measured_as_such(model):
    """SnapKV: every KV head keeps what its own four query heads look at."""
    (prompt,), (answer,) = texts(1, 40, 1), texts(1, 5, 2)
    found = layer_errors(model, SnapKV(budget=BUDGET), [prompt], [answer], (BUDGET,))
    kept_of = slow_choice(model, lambda layer, group: range(4 * group, 4 * group + 4), len(prompt))
    slow = slow_layer_errors(model.hf, prompt, answer, projections(model), kept_of)
    assert found.values[0, 0].tolist() == pytest.approx([slow[layer] for layer in range(4)], rel=3e-5)


def test_budgets_measured_together_are_those_measured_alone(model, press, prompts, answers):
    together = layer_errors(model, press, prompts, answers, (16, 32, 48))
    for i, budget in enumerate((16, 32, 48)):
        alone = layer_errors(model, press, prompts, answers, (budget,))
        np.testing.assert_allclose(alone.values[0], together.values[i], rtol=1e-5)
    for i in range(4):
        alone = layer_errors(model, press, prompts[i : i + 1], answers[i : i + 1], (16, 32, 48))
        np.testing.assert_allclose(alone.values[:, 0], together.values[:, i], rtol=1e-5)


def test_errors_fall_as_the_budget_grows_and_end_at_zero(model, press):
    """Card 6.5, means over prompts."""
    budgets = (16, 24, 32, 40, 48, 56, 60, 99)
    found = layer_errors(model, press, texts(12, 60, 7), texts(12, 6, 8), budgets).values.mean(axis=1)
    assert (np.diff(found[:-1], axis=0) < 0).all()
    assert (found[:-2] > 0).all()
    assert (found[-2:] == 0).all()  # all is kept


def test_errors_stay_local_to_their_layer(model, press, prompts, answers):
    """What layer 0 loses must not reach layer 1: with other heads choosing in layer 0 only, the other layers' errors are the same."""
    values = random_heads().values.copy()
    values[0] = values[0, ::-1]
    other = CompressKV(HeadScores(values, "semantic"), budget=BUDGET)
    first, second = (layer_errors(model, p, prompts, answers).values for p in (press, other))
    assert (first[..., 1:] == second[..., 1:]).all()
    assert (first[..., 0] != second[..., 0]).all()


def test_the_press_may_have_any_budget_and_allocation(model, press, prompts, answers):
    other = CompressKV(random_heads(), compression_ratio=0.5, layer_errors=(0.1, 0.2, 0.3, 0.4))
    assert (layer_errors(model, press, prompts, answers).values == layer_errors(model, other, prompts, answers).values).all()


def test_profiles_share_out_budgets(model, press, prompts, answers):
    found = layer_errors(model, press, prompts, answers, (16, 32), ["a", "a", "a", "b"])
    profile = found.profile()
    assert sum(profile) == pytest.approx(1)
    sums = [found.values[0, :3].sum(axis=0), found.values[0, 3]]
    assert profile == pytest.approx(tuple(np.mean([s / s.sum() for s in sums], axis=0)))
    assert found.profile(32) != profile
    with pytest.raises(HeadwiseError, match="no layer errors for a budget of 24; measured: 16, 32"):
        found.profile(24)
    budgeted = CompressKV(random_heads(), budget=40, layer_errors=profile)
    with compress(model.hf, budgeted) as cache:
        cache.prefill(torch.tensor(prompts[:1]))
        counts = [len(rows[0]) for rows in cache.held_positions().values()]
    assert sum(counts) == 4 * 40
    assert np.argmax(counts) == np.argmax(profile)
    whole = layer_errors(model, press, prompts, answers, (60,))
    with pytest.raises(HeadwiseError, match="no error in any layer; use longer prompts or a smaller budget"):
        whole.profile()


def test_layers_with_a_window_have_no_share():
    model = random_model("gemma3_text")
    found = layer_errors(model, CompressKV(random_heads(), budget=BUDGET), texts(2, 50, 1), texts(2, 4, 2))
    assert np.isnan(found.values[..., :2]).all()
    assert found.profile()[:2] == (0, 0)
    with compress(model.hf, CompressKV(random_heads(), budget=40, layer_errors=found.profile())) as cache:
        cache.prefill(torch.tensor(texts(1, 60, 3)))
        assert sum(len(rows[0]) for rows in cache.held_positions().values()) == 2 * 40


@torch.no_grad()
def test_the_model_is_as_before(press, prompts, answers):
    model = random_model("llama")
    ids = torch.tensor(prompts)
    before, implementation = model.hf(input_ids=ids).logits, model.hf.config._attn_implementation
    layer_errors(model, press, prompts, answers)

    class BrokenPress(WindowPress):
        def scores(self, view):
            raise HeadwiseError("broken")

    with pytest.raises(HeadwiseError, match="broken"):
        layer_errors(model, BrokenPress(budget=20), prompts, answers)
    assert model.hf.config._attn_implementation == implementation
    assert torch.equal(model.hf(input_ids=ids).logits, before)


def test_half_precision_gives_nearly_the_same(model, press, prompts, answers):
    exact = layer_errors(model, press, prompts, answers).profile()
    hf = tiny_model("llama").to(torch.bfloat16)
    half = layer_errors(Model(hf, model.tokenizer), press, prompts, answers)
    assert half.profile() == pytest.approx(exact, abs=0.03)


def test_progress_is_told(model, press, prompts, answers):
    reports = []
    layer_errors(model, press, prompts, answers, report=lambda *report: reports.append(report))
    assert [report[:2] for report in reports] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert reports[-1][2] == "4 of 4 prompts"


# ---- files


@pytest.fixture(scope="module")
def measured(model, press, prompts, answers):
    return layer_errors(model, press, prompts, answers, (16, 32), ["a", "a", "b", "b"])


def test_a_saved_file_is_read_back(measured, tmp_path):
    measured.save(tmp_path / "errors.json")
    again = LayerErrors.load(tmp_path / "errors.json")
    assert (again.values == measured.values).all()
    assert (again.budgets, again.rows, again.datasets) == ((16, 32), (7, 7, 7, 7), ("a", "a", "b", "b"))
    assert again.profile() == measured.profile()
    assert json.dumps(again.provenance) == json.dumps(measured.provenance)
    with pytest.raises(HeadFileError, match="exists"):
        measured.save(tmp_path / "errors.json")
    before = (tmp_path / "errors.json").read_bytes()
    again.save(tmp_path / "errors.json", overwrite=True)
    assert (tmp_path / "errors.json").read_bytes() == before


def test_layers_without_errors_survive_the_file(tmp_path):
    model = random_model("gemma3_text")
    found = layer_errors(model, CompressKV(random_heads(), budget=BUDGET), texts(1, 50, 1), texts(1, 4, 2))
    found.save(tmp_path / "errors.json")
    again = LayerErrors.load(tmp_path / "errors.json")
    np.testing.assert_array_equal(again.values, found.values)
    assert again.profile() == found.profile()


def test_the_file_says_where_it_comes_from(measured, press):
    stated = measured.provenance
    assert (stated["layers"], stated["heads"], stated["kv_heads"], stated["dtype"]) == (4, 8, 2, "float32")
    assert "window=8, sinks=4" in stated["press"]
    assert f"chosen={press.chosen}" in stated["press"]


def test_errors_of_another_model_are_refused(measured, model):
    measured.check(model)
    for options in ({"num_hidden_layers": 3}, {"num_attention_heads": 4}, {"num_key_value_heads": 4}):
        other = as_model(tiny_model("llama", **options))
        with pytest.raises(HeadwiseError, match=r"layers, heads, KV heads \[4, 8, 2\]; llama has"):
            measured.check(other)


@pytest.mark.parametrize(
    "content", ["no json", "[]", "{}", '{"layer_errors": {"budgets": [32]}}', '{"layer_errors": 3}', '"text"']
)
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "errors.json").write_text(content)
    with pytest.raises(HeadFileError, match=r"is no file of layer errors (?!.*(Error\(|subscriptable|indices))") as error:
        LayerErrors.load(tmp_path / "errors.json")
    assert "\n" not in str(error.value)


def test_files_that_do_not_add_up_are_refused(measured, tmp_path):
    measured.save(tmp_path / "errors.json")
    data = json.loads((tmp_path / "errors.json").read_text())
    data["layer_errors"]["budgets"] = [16, 32, 48]
    (tmp_path / "errors.json").write_text(json.dumps(data))
    with pytest.raises(HeadFileError, match=r"values of shape \(2, 4, 4\)"):
        LayerErrors.load(tmp_path / "errors.json")
    with pytest.raises(HeadFileError, match=r"cannot read layer errors from .*: No such file"):
        LayerErrors.load(tmp_path / "missing.json")
    with pytest.raises(HeadFileError):
        load_heads(tmp_path / "errors.json")  # and it is no head file either


# ---- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": [[5]]}, r"as many answers and data set names as prompts, nothing empty; got \[4, 1, 4\]"),
        ({"datasets": ["a"]}, r"got \[4, 4, 1\]"),
        ({"prompts": [], "answers": []}, r"got \[0, 0, 0\]"),
        ({"answers": [[5], [5], [], [5]]}, "nothing empty"),
        ({"budgets": ()}, r"budgets must be different numbers above 12 \(sinks and window\); got \[\]"),
        ({"budgets": (12,)}, r"got \[12\]"),
        ({"budgets": (32, 32)}, r"got \[32, 32\]"),
        ({"prompts": [[5] * 250] * 4, "answers": [[5] * 10] * 4}, "have 260 tokens, but the model has 256 positions"),
    ],
)
def test_bad_input_is_refused(model, press, prompts, answers, change, message):
    with pytest.raises(HeadwiseError, match=message) as error:
        layer_errors(**{"model": model, "press": press, "prompts": prompts, "answers": answers, **change})
    assert "\n" not in str(error.value)


def test_a_press_of_another_model_is_refused(model, prompts, answers):
    with pytest.raises(HeadwiseError, match="these heads belong to a model of 3 layers"):
        layer_errors(model, CompressKV(HeadScores(np.random.rand(3, 8), "semantic"), budget=BUDGET), prompts, answers)


def test_gated_attention_is_refused(press, prompts, answers):
    with pytest.raises(HeadwiseError, match="layer errors of qwen3_next would miss the gate"):
        layer_errors(random_model("qwen3_next"), press, prompts, answers)


def test_outputs_that_are_not_finite_are_refused(press, prompts, answers):
    model = random_model("llama")
    with torch.no_grad():
        model.hf.model.layers[2].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(HeadwiseError, match="prompt 0: layer 2 gives no finite output"):
        layer_errors(model, press, prompts, answers)
