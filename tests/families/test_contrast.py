"""For every family: both branches of contrastive decoding against separate full passes, and the processor of `generate` beside it."""

import pytest
import torch

from headwise import ContrastProcessor, Without, contrastive_generate
from headwise.models.model import as_model
from headwise.runtime.branches import negative_of, opened
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.reference import contrast as slow

IDS = [5, 9, 33, 70, 12, 41, 8, 66, 23, 50, 17, 88]  # longer than the window of the tiny models
SHORT = [5, 9, 33, 70, 44]  # begins alike
ANSWER = [60, 3]


@pytest.fixture(autouse=True)
def small_layers_count(monkeypatch):
    monkeypatch.setattr("headwise.attention.few_rows.LEAST", 1)


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def hf(request):
    made = tiny_model(request.param)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 1
    return made


def negatives(hf):
    layers = list(as_model(hf).modules)
    heads = [(layers[0], 1), (layers[-1], 3), (layers[-1], 6)]
    return {
        "zero": (Without(heads), (set(heads), "zero", "answer")),
        "uniform": (Without(heads, "uniform", "all"), (set(heads), "uniform", "all")),
        "prompt": (SHORT, SHORT),
    }


@pytest.mark.parametrize("kind", ["zero", "uniform", "prompt"])
def test_both_branches_are_those_of_separate_passes(hf, kind):
    (given, plain), model = negatives(hf)[kind], as_model(hf)
    with torch.no_grad(), opened(model, tuple(IDS), negative_of(model, given)) as advance:
        got = torch.stack([advance(token) for token in (None, *ANSWER)])
    wanted = torch.stack([torch.stack(pair) for pair in slow.pairs(hf, IDS, plain, ANSWER)])
    close = {"atol": 2e-4, "rtol": 1e-3} if model.is_hybrid else {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(got, wanted, **close)
    assert (got[:, 0] - got[:, 1]).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("kind", ["zero", "uniform", "prompt"])
def test_the_processor_says_the_same_and_the_model_stays_what_it_was(hf, kind):
    given, ids = negatives(hf)[kind][0], torch.tensor([IDS])
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    plain = hf.generate(ids, **options)
    made = contrastive_generate(hf, IDS, given, 0.7, max_new_tokens=4)
    processor = ContrastProcessor(hf, given, 0.7)
    assert hf.generate(ids, logits_processor=[processor], **options)[0, len(IDS) :].tolist() == list(made.ids)
    assert torch.equal(hf.generate(ids, **options), plain)


def test_prompts_of_one_token(hf):
    """Nothing of them is in a cache before both branches go on together."""
    model, got = as_model(hf), {}
    for ids, other in (((7,), (9,)), (tuple(IDS), (9,)), ((9,), tuple(IDS))):
        with torch.no_grad(), opened(model, ids, negative_of(model, other, ids)) as advance:
            got[ids, other] = torch.stack([advance(None), advance(60)])
    for (ids, other), logits in got.items():
        wanted = torch.stack([torch.stack(pair) for pair in slow.pairs(hf, list(ids), list(other), [60])])
        torch.testing.assert_close(logits, wanted, atol=2e-4, rtol=1e-3)
