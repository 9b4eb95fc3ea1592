"""The bundled model: a plain checkpoint with real retrieval heads; and a real model without any."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwise.evaluation.needle import measure_needle_grid
from headwise.heads import NoSuccessfulRunError
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores
from headwise.models.load import load
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task
from headwise.prompts.haystack import Haystack, bundled_texts
from headwise.prompts.needles import NeedleComposer, bundled_needles

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab():
    return load(str(bundled_model()))


def task_of(model, needles, lengths, depths=(0.25, 0.75)):
    encoder = PieceEncoder(model.tokenizer)
    return Task(needles, Haystack(bundled_texts()[:1], encoder), NeedleComposer(encoder), GridOptions(lengths, depths))


def test_plain_transformers_can_load_it():
    model = AutoModelForCausalLM.from_pretrained(bundled_model())
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    assert model.dtype == torch.bfloat16
    assert model.config.num_hidden_layers >= 8
    assert model.config.num_attention_heads >= 8
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.max_position_embeddings >= 1024
    assert (bundled_model() / "model.safetensors").stat().st_size <= 15e6
    assert tokenizer("a").input_ids[0] == tokenizer.bos_token_id


@pytest.mark.slow
def test_it_answers_needles_it_has_never_seen(lab):
    result = measure_needle_grid(lab, task_of(lab, bundled_needles(), (256, 512)))
    assert result["runs"] == 128
    assert result["exact"] >= 0.95


@pytest.mark.slow
def test_its_retrieval_heads_are_few_and_clear(lab):
    scores = copy_scores(lab, task_of(lab, bundled_needles("detect"), (256,)), Copy())
    strong, weak = (scores.values > 0.5).sum(), (scores.values < 0.1).sum()
    assert 3 <= strong <= 24
    assert weak >= 32
    assert scores.values.max() > 0.8
    assert (scores.frequency >= scores.values - 1e-6).all()


@pytest.mark.slow
def test_an_untrained_copy_has_none(lab):
    torch.manual_seed(0)
    model = type(lab.hf)(lab.hf.config).eval()
    with pytest.raises(NoSuccessfulRunError, match="no successful run"):
        copy_scores(replace(lab, hf=model), task_of(lab, bundled_needles()[:2], (128,)), Copy(max_new_tokens=12))


def test_its_recipe_is_the_recipe_of_the_code():
    from dataclasses import asdict

    from headwise_lab.recipe.recipes import RECIPES

    for folder in bundled_model().parent.iterdir():
        saved = json.loads((folder / "recipe.json").read_text())
        assert saved == json.loads(json.dumps(asdict(RECIPES[folder.name])))


def test_the_recipe_holds_out_what_it_should():
    from headwise_lab.recipe.corpus import HELD_OUT_FILE, TRAIN_FILES, _is_haystack

    assert HELD_OUT_FILE not in TRAIN_FILES
    assert all(
        map(_is_haystack, ("Frankenstein", "Walden", "Alice's Adventures in Wonderland", "Alice’s Adventures in Wonderland"))
    )
    assert not _is_haystack("Moby Dick")


@pytest.mark.slow
def test_stories260k_has_no_retrieval_head(tmp_path):
    spec = importlib.util.spec_from_file_location("convert", ROOT / "examples" / "convert_stories260k.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.convert(ROOT / "tests" / "data" / "stories260K", tmp_path / "stories")
    model = load(str(tmp_path / "stories"))
    story = model.hf.generate(torch.tensor([[1]]), max_new_tokens=30, do_sample=False)
    assert "Once upon a time, there was a little girl named Lily." in model.tokenizer.decode(story[0])
    with pytest.raises(NoSuccessfulRunError):
        copy_scores(model, task_of(model, bundled_needles("detect")[:8], (128,)), Copy(max_new_tokens=12))
