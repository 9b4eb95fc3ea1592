"""Perplexity against transformers' own loss, and the windows it is measured on."""

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from headwise.attention import ablate
from headwise.evaluation.perplexity import losses_without, perplexity, plain_windows, text_windows, window_losses, with_bos
from headwise.heads import HeadSet, HeadwiseError, PromptError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task
from headwise.prompts.haystack import Haystack
from headwise.prompts.needles import Needle, NeedleComposer
from headwise.testing.planted import planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

SHAPE = (4, 8)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def windows():
    return torch.randint(2, 96, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def haystack():
    return Haystack(planted_task().texts, PieceEncoder(character_tokenizer()))


def test_losses_equal_those_of_transformers(model, windows):
    with torch.no_grad():
        expected = torch.stack([model(input_ids=window[None], labels=window[None]).loss for window in windows])
    torch.testing.assert_close(window_losses(model, windows), expected)
    assert perplexity(model, windows) == pytest.approx(float(expected.double().mean().exp()), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 7, 19, 100])
def test_chunks_do_not_matter(model, windows, rows):
    torch.testing.assert_close(window_losses(model, windows, rows), window_losses(model, windows))


def test_bfloat16_models_have_a_float32_loss(windows):
    small = tiny_model("llama").to(torch.bfloat16)
    losses = window_losses(small, windows)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, window_losses(tiny_model("llama"), windows), atol=0.1, rtol=0)


def test_an_open_block_counts(model, windows):
    heads = HeadSet.of([(0, 1), (3, 2)], SHAPE)
    with ablate(model, heads):
        inside = perplexity(model, windows)
    assert inside != pytest.approx(perplexity(model, windows), rel=1e-4)
    asked = []

    def enter(chosen):
        asked.append(chosen)
        return ablate(model, chosen)

    again = HeadSet.of([(3, 2), (0, 1)], SHAPE)
    losses = losses_without(model, windows, [HeadSet((), SHAPE), heads, None, again], enter)
    assert losses.shape == (4, 3)
    assert len(asked) == 2
    np.testing.assert_allclose(np.exp(losses.mean(axis=1))[[0, 1, 3]], [perplexity(model, windows), inside, inside], rtol=1e-5)
    assert np.isnan(losses[2]).all()


def test_bad_windows_and_bad_losses_are_refused(model, windows):
    for shape in ((0, 5), (3, 1), (5,)):
        with pytest.raises(HeadwiseError, match="at least 2 tokens; got shape"):
            window_losses(model, torch.zeros(shape, dtype=torch.int64))
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.lm_head.weight[3] = torch.nan
    with pytest.raises(HeadwiseError, match="not finite"):
        window_losses(broken, windows)


def places(haystack, windows):
    """Where each window starts in the haystack."""
    ids = haystack.window(len(haystack), (0,)).ids
    return [next(i for i in range(len(ids)) if ids[i : i + len(window)] == tuple(window)) for window in windows.tolist()]


def test_windows_do_not_overlap_and_keep_to_their_part(haystack):
    windows = text_windows(haystack, 6, 100, (0.5, 0.8))
    starts = places(haystack, windows)
    assert windows.shape == (6, 100)
    assert starts == sorted(starts)
    assert min(np.diff(starts)) >= 100
    assert starts[0] >= 0.5 * len(haystack) - 1
    assert starts[-1] + 100 <= 0.8 * len(haystack) + 1
    assert torch.equal(windows, text_windows(haystack, 6, 100, (0.5, 0.8)))


def make_task(haystack, part):
    composer = NeedleComposer(PieceEncoder(character_tokenizer()))
    return Task([Needle("the key is x7.", "what is the key?", "x7")], haystack, composer, GridOptions((50,), (0.5,), part=part))


def test_calibration_and_plain_text_are_disjoint_and_outside_of_the_grid(haystack):
    calibration, plain = plain_windows(make_task(haystack, (0.0, 0.5)), 200)
    assert calibration.shape == plain.shape == (8, 128)  # the longest that fits the model and the text
    first, second = places(haystack, calibration), places(haystack, plain)
    assert min(first) >= 0.5 * len(haystack) - 1
    assert max(first) + 128 <= min(second)


def test_too_little_plain_text_is_refused(haystack):
    with pytest.raises(PromptError, match="too little text behind its first 100% for perplexity; give more with --haystack"):
        plain_windows(make_task(haystack, (0.0, 1.0)), None)


def test_bos_is_put_in_front():
    windows = torch.full((2, 3), 7)
    tokenizer = character_tokenizer()
    assert with_bos(windows, tokenizer).tolist() == [[tokenizer.bos_token_id, 7, 7, 7]] * 2
    tokenizer.bos_token = None  # the name goes, what the tokenizer puts in front stays
    assert with_bos(windows, tokenizer).tolist() == [[0, 7, 7, 7]] * 2
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    assert with_bos(windows, tokenizer).tolist() == [[7, 7, 7]] * 2
