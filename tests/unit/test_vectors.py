"""Function vectors: extracted from one prompt, their scale searched on other items than it is measured on, kept in a sealed file."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from headwise.attention import insert, record
from headwise.heads import HeadSet, HeadwiseError
from headwise.methods.vectors.effects import vector_effects
from headwise.methods.vectors.extract import FunctionVectors, every_head, extract_vectors, function_vectors, prompt_list
from headwise.methods.vectors.file import KEY, load_vectors, save_vectors
from headwise.methods.vectors.search import SearchOptions, VectorItem, random_vectors, search_scale, split
from headwise.models.forward import token_tensor
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from tests.unit.test_interventions import asked

PLANTED = [(1, 2)]


@pytest.fixture(scope="module")
def planted():
    return Model(*planted_copier(heads=4))


@pytest.fixture(scope="module")
def tiny():
    return Model(tiny_model("llama"))


def test_vectors_are_the_outputs_behind_one_prompt(tiny):
    first, second = [5, 9, 17, 40], [8, 3, 22]
    for model in (tiny, tiny.hf):
        found = extract_vectors(model, [(3, 1), (0, 7)], first)
        with record(tiny, [(3, 1), (0, 7)]) as seen, torch.no_grad():
            tiny.hf(torch.tensor([first]), use_cache=False)
        torch.testing.assert_close(found.values, seen.outputs[0, 0], atol=1e-6, rtol=0)
    several = [extract_vectors(tiny, [(3, 1)], ids).values for ids in (first, second)]
    torch.testing.assert_close(extract_vectors(tiny, [(3, 1)], [first, second], average=True).values, sum(several) / 2)
    every = extract_vectors(tiny, None, first)
    assert len(every.heads) == 4 * 8
    torch.testing.assert_close(every.of([(3, 1), (0, 7)]).values, found.values, atol=1e-6, rtol=0)


def test_layers_without_heads_have_no_vectors():
    hybrid = Model(tiny_model("qwen3_next"))
    assert {head.layer for head in every_head(hybrid)} == {1, 3}
    assert extract_vectors(hybrid, None, [5, 9, 17]).values.shape == (16, 16)
    with pytest.raises(HeadwiseError, match=r"layer 0 of .* has no attention heads"):
        extract_vectors(hybrid, [(0, 1)], [5, 9, 17])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "the prompt is empty"),
        ([[]], "the prompt is empty"),
        ([[4, 5], []], "the prompt is empty"),
        (None, "prompts must be token ids, or a list of them; got None"),
        ([1.5], "prompts must be token ids, or a list of them"),
        ("a text", "prompts must be token ids, or a list of them; got 'a text'"),
        ([[4, 5], [6]], "2 prompts were given; vectors come from one prompt, or from the average of several"),
    ],
)
def test_prompts_that_give_no_vector_are_refused(tiny, prompts, message):
    with pytest.raises(HeadwiseError, match=message):
        extract_vectors(tiny, [(0, 1)], prompts)


def test_prompts_may_be_tables_and_models_bare(tiny):
    right = extract_vectors(tiny, [(0, 1)], [4, 5, 6]).values
    bare = tiny.hf if isinstance(tiny, Model) else tiny
    for table in (
        torch.tensor([4, 5, 6]),
        torch.tensor([[4, 5, 6]]),
        np.array([4, 5, 6]),
        [np.int64(4), np.int64(5), np.int64(6)],
    ):
        assert torch.equal(extract_vectors(tiny, [(0, 1)], table).values, right)
        found = function_vectors(bare, [(0, 1)], table)
        assert torch.equal(found.vectors.values, right)
        assert found.provenance["prompts"] == 1


def items(planted):
    """Questions about needles 0 and 2 to 5, in a text that holds needle 1 too; wanted: the first word of needle 1."""
    word = planted_task().needles[1]["answer"].split()[0]
    return [VectorItem(asked(planted, number, needles=(number, 1)), (word,)) for number in (0, 2, 3, 4, 5)]


def test_the_scale_is_chosen_on_other_items_than_it_is_measured_on(planted):
    every = extract_vectors(planted, None, asked(planted, 1))
    options = SearchOptions(scales=(0.01, 1.0, -1.0), controls=1, development=0.4, max_new_tokens=3)
    steps = []
    found = search_scale(planted, every, PLANTED, items(planted), options, report=lambda *told: steps.append(told))
    assert found.scale == 1.0
    assert found.development == {0.01: 0.0, 1.0: 1.0, -1.0: 0.0}
    assert (found.plain.tolist(), found.steered.tolist()) == ([False] * 3, [True] * 3)
    assert not found.controls.any()
    told = found.to_json()
    assert told["steered"]["mean"] == 1
    assert told["plain"]["mean"] == 0
    assert told["random"]["mean"] == 0
    assert told["p_mcnemar"] == pytest.approx(0.25)
    assert told["p_rank"] == 0.5
    json.dumps(told, allow_nan=False)
    own, rest = split(5, 0.4, options.seed)
    assert [place for place, _, _ in found.examples] == rest
    assert not set(own) & set(rest)
    assert steps[-1][:2] == (5, 5)
    for _, before, after in found.examples:
        assert before.split()[0] != after.split()[0]


def test_of_equal_scales_the_one_nearest_to_one_is_chosen(planted):
    every = extract_vectors(planted, None, asked(planted, 1))
    options = SearchOptions(scales=(3.0, 1.25, 1.5), controls=0, max_new_tokens=1)
    found = search_scale(planted, every, PLANTED, items(planted)[:2], options)
    assert found.scale == 1.25
    assert "random" not in found.to_json()


def test_parts_are_disjoint_seeded_and_never_empty():
    for count in range(2, 30):
        for share in (0.01, 0.3, 0.99):
            own, rest = split(count, share, 3)
            assert sorted([*own, *rest]) == list(range(count))
            assert own
            assert rest
    assert split(20, 0.3, 1) == split(20, 0.3, 1) != split(20, 0.3, 2)
    with pytest.raises(HeadwiseError, match="got 1, give at least 2"):
        split(1, 0.5, 0)


def test_random_heads_get_vectors_of_the_same_prompt(tiny):
    every = extract_vectors(tiny, None, [5, 9, 17])
    chosen = HeadSet.of([(1, 2), (1, 3), (2, 0)], (4, 8))
    draws = random_vectors(every, chosen, 3, seed=1)
    for drawn in draws:
        assert [head.layer for head in drawn.heads] == [1, 1, 2]
        assert not set(drawn.heads) & set(chosen)
        assert torch.equal(drawn.values, every.of(drawn.heads).values)
    assert len({tuple(drawn.heads) for drawn in draws}) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scales": ()}, "scales must be different numbers, at least one"),
        ({"scales": (1.0, 1.0)}, "scales must be different numbers"),
        ({"scales": (float("inf"),)}, "the scale must be a finite number"),
        ({"mode": "swap"}, "unknown mode 'swap'"),
        ({"development": 1.0}, r"the development part must lie in \(0, 1\); got 1"),
        ({"controls": -1}, "controls must be at least 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_options_of_a_search_check_themselves(given, message):
    with pytest.raises(HeadwiseError, match=message):
        SearchOptions(**given)


# ---- the file


@pytest.fixture
def saved(planted, tmp_path):
    found = function_vectors(planted, PLANTED, asked(planted, 1), "add", 1.5)
    save_vectors(found, planted, tmp_path / "v.safetensors")
    return found, tmp_path / "v.safetensors"


def test_a_file_gives_the_same_vectors_back(planted, saved):
    found, path = saved
    again = load_vectors(path, planted)
    assert (again.mode, again.scale, list(again.vectors.heads)) == ("add", 1.5, list(found.vectors.heads))
    assert torch.equal(again.vectors.values, found.vectors.values)
    assert again.provenance == found.provenance
    assert again.provenance["model"] == "planted-copier"
    assert again.provenance["prompts"] == 1
    assert len(again.provenance["prompts_digest"]) == len(again.provenance["fingerprint"]) == 16
    assert path.stat().st_size < 8192
    ids = token_tensor(planted.hf, asked(planted, 0).ids)
    with torch.no_grad():
        with again.inserted(planted):
            got = planted.hf(ids, use_cache=False).logits
        with insert(planted, found.vectors, "add", 1.5):
            assert torch.equal(planted.hf(ids, use_cache=False).logits, got)
    before = path.read_bytes()
    with pytest.raises(HeadwiseError, match="exists; give another name or --overwrite"):
        save_vectors(found, planted, path)
    save_vectors(found, planted, path, overwrite=True)
    assert path.read_bytes() == before


def changed(path, **more):
    """The file with other facts or other numbers, written as its format wants it."""
    with safetensors.safe_open(str(path), framework="pt") as file:
        about, values = json.loads(file.metadata()[KEY]), file.get_tensor("vectors")
    values = more.pop("values", values)
    path.write_bytes(safetensors.torch.save({"vectors": values}, {KEY: json.dumps(about | more)}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "no such file of vectors"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "cannot be read as a file of vectors"),
        (lambda path: path.write_text("nothing"), "cannot be read as a file of vectors"),
        (lambda path: path.write_bytes(safetensors.torch.save({"vectors": torch.ones(1, 128)})), "is no file of vectors"),
        (lambda path: changed(path, schema=99), "is no file of vectors that this headwise reads"),
        (lambda path: changed(path, scale=9.0), "was changed after it was written"),
        (lambda path: changed(path, heads=["L1H3"]), "was changed after it was written"),
        (lambda path: changed(path, values=torch.ones(1, 128)), "was changed after it was written"),
    ],
)
def test_a_broken_or_changed_file_is_refused(planted, saved, change, message):
    _, path = saved
    change(path)
    with pytest.raises(HeadwiseError, match=message) as caught:
        load_vectors(path, planted)
    assert "\n" not in str(caught.value)


def test_vectors_of_another_model_are_refused(planted, saved):
    _, path = saved
    for other, name in (
        (Model(*planted_copier(layers=3)), "layers"),
        (Model(*planted_copier(seed=1)), "weights"),
        (Model(planted_copier()[0].to(torch.bfloat16), planted.tokenizer), "dtype"),
    ):
        with pytest.raises(HeadwiseError, match=f"holds vectors of another model: {name}"):
            load_vectors(path, other)
    assert load_vectors(path, Model(planted.hf)).scale == 1.5  # without a tokenizer: weights decide


def test_function_vectors_check_themselves(tiny):
    found = extract_vectors(tiny, [(0, 1)], [4, 5])
    with pytest.raises(HeadwiseError, match="unknown mode"):
        FunctionVectors(found, "swap")
    with pytest.raises(HeadwiseError, match="do not fit into float32; lower the scale"):
        FunctionVectors(found, scale=1e300)
    assert prompt_list([4, 5]) == [(4, 5)]
    assert np.allclose(found.norms, found.values.norm(dim=1))


# ---- effects of single heads


def test_the_heads_whose_vectors_alone_carry_the_answer_are_found(planted):
    every = extract_vectors(planted, None, asked(planted, 1))
    word = planted_task().needles[1]["answer"].split()[0]
    gold = tuple(planted.tokenizer.encode(" " + word, add_special_tokens=False))
    prompts = [Prompt(item.prompt.ids, {}, gold) for item in items(planted)[:3]]
    steps = []
    found = vector_effects(planted, every, prompts, rows=3, report=lambda *told: steps.append(told[:2]))
    # The second one looks at the token before and so names the needle that the planted head reads.
    assert set(found.ranking()[:2]) == {(1, 2), (0, 0)}
    assert min(found[1, 2], found[0, 0]) > 3
    assert found.runs.shape == (3, 2, 4)
    assert np.abs(np.delete(found.values.ravel(), [0, 6])).max() < 0.5
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert np.allclose(vector_effects(planted, every, prompts).values, found.values, atol=1e-4)
    some = vector_effects(planted, every.of([(1, 2), (1, 3)]), prompts[:1])
    assert np.isnan(some.values).sum() == 6
    for wrong in ([], [Prompt(prompts[0].ids)]):
        with pytest.raises(HeadwiseError, match="prompts with a wanted answer"):
            vector_effects(planted, every, wrong)
