"""Control tokens are learnt, saved with the adapter and loaded again."""

import pytest
import torch

import headwise as hw
from headwise.heads.errors import HeadwiseError
from headwise.prompts.control import CONTROL, control_ids
from headwise.prompts.prompt import Span
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise.train.control import with_control_tokens
from headwise.train.examples import Prepared, TrainExample
from headwise.train.lora import with_lora
from headwise.train.objectives import AnswerLoss
from headwise.train.options import Tuning
from headwise.train.run import train_to_folder
from headwise.train.tuning import tune

IDS = torch.tensor([[4096, 9, 8, 7], [4097, 9, 8, 7], [5, 9, 8, 7]])


def examples():
    """One prompt, two answers: which one follows the token in front."""
    return tuple(TrainExample((token, 9, 8, 7, answer, 1), 4, Span(1, 4)) for token, answer in ((4096, 11), (4097, 12)))


def test_new_tokens_are_new_rows_and_the_rest_stays():
    plain, model = hw.load("lab-6m"), with_control_tokens(hw.load("lab-6m"))
    assert control_ids(model.tokenizer) == (4096, 4097)
    assert model.tokenizer("[POS] a").input_ids[:2] == [0, 4096]
    old, new = (one.hf.get_input_embeddings().weight.detach() for one in (plain, model))
    assert torch.equal(new[:4096], old)
    assert 1 < float((new[4096] - new[4097]).norm() / old.std(dim=0).norm()) < 2  # as far apart as any two tokens: about the root of 2
    with torch.no_grad():
        assert torch.equal(model.hf(IDS[2:]).logits[..., :4096], plain.hf(IDS[2:]).logits)


@pytest.mark.slow
def test_they_steer_and_are_saved_with_the_adapter(tmp_path):
    model = with_control_tokens(hw.load("lab-6m"))
    options = Tuning(steps=14, accumulate=2, rank=8, rate=1e-2, warmup=0.1, save_every=50)
    tokens = control_ids(model.tokenizer)
    train_to_folder(model, Prepared(examples(), {}), lambda _: AnswerLoss(), options, tmp_path / "out", {}, "lab-6m", tokens=tokens)
    adapted, merged = hw.load(str(tmp_path / "out" / "adapter")), hw.load(str(tmp_path / "out" / "merged"))
    assert control_ids(adapted.tokenizer) == control_ids(merged.tokenizer) == tokens
    with torch.no_grad():
        trained, one, two = (each.hf(IDS).logits for each in (model, adapted, merged))
    torch.testing.assert_close(one, trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two, trained, rtol=1e-4, atol=1e-4)
    assert one[:2, -1].argmax(dim=-1).tolist() == [11, 12]


@pytest.mark.slow
def test_they_learn_at_a_rate_of_their_own():
    """The first step of Adam moves every number by the rate, whatever its gradient."""
    model = with_control_tokens(hw.load("lab-6m"))
    embedding, tokens = model.hf.get_input_embeddings().weight, list(control_ids(model.tokenizer))
    before, spread = embedding[tokens].detach().clone(), float(embedding.detach().std(dim=0).mean())
    options = Tuning(steps=1, accumulate=2, rank=2, rate=1e-6, warmup=0.0)
    adapted = with_lora(model, options, tokens=tokens)
    tune(adapted, examples(), AnswerLoss(), options)
    values = dict(adapted.adapter.named_parameters())
    (moved,) = (value.detach() for name, value in values.items() if "trainable_tokens" in name)
    torch.testing.assert_close((moved - before).abs().median(), torch.tensor(0.3 * spread), rtol=0.01, atol=0)
    lora = [value.detach().abs().max() for name, value in values.items() if "lora_B" in name]
    assert 0 < max(lora) < 2e-6


def test_tokens_that_are_there_already_or_missing_are_refused():
    model = with_control_tokens(hw.load("lab-6m"))
    with pytest.raises(HeadwiseError, match=r"has a token \[NEG\] already"):
        with_control_tokens(model)
    with pytest.raises(HeadwiseError, match=r"no control token \[POS\]"):
        control_ids(hw.load("lab-6m").tokenizer)
    assert CONTROL == ("[POS]", "[NEG]")


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_an_output_with_rows_of_its_own_says_the_same_whenever_the_model_is_loaded(model_type):
    made = [with_control_tokens(hw.Model(tiny_model(model_type), character_tokenizer()), seed=seed) for seed in (0, 0)]
    rows = [one.hf.get_output_embeddings().weight.detach() for one in made]
    assert torch.equal(rows[0], rows[1])
    torch.testing.assert_close(rows[0][96:], rows[0][:96].mean(dim=0).expand(2, -1))
    assert torch.equal(rows[0][:96], tiny_model(model_type).get_output_embeddings().weight)
