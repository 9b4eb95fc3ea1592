"""Scope `answer`: each row's last real prompt token and everything behind it, whatever cache and padding."""

import pytest
import torch
from transformers import DynamicCache

from headwise.attention import ablate
from headwise.attention.means import head_means, head_samples
from headwise.caches.kept_cache import compress
from headwise.heads import HeadSet, HeadwiseError
from headwise.methods.snapkv.press import SnapKV
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache

HEADS = HeadSet.of([(1, 2), (2, 5), (0, 1), (3, 3)], (4, 8))
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
MODES = ("zero", "uniform", "mean", "resample")


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2"])
def model(request):
    made = tiny_model(request.param)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 1
    return made


def text(tokens, seed=0, rows=1):
    return torch.randint(3, 96, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def ablated(model, mode="zero", **options):
    means = head_means(model, [text(30, 9)]) if mode == "mean" else None
    samples = head_samples(model, [text(30, 9)], 8) if mode == "resample" else None
    return ablate(model, HEADS, mode=mode, scope="answer", means=means, samples=samples, **options)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_without_a_cache_ablates_the_same_rows(model, mode, beams):
    ids = text(40, rows=2)
    options = {
        "max_new_tokens": 12,
        "do_sample": False,
        "num_beams": beams,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with ablated(model, mode):
        with_a_cache = model.generate(ids, use_cache=True, **options)
        without = model.generate(ids, use_cache=False, **options)
    with ablated(model, mode, answer_from=39):
        told = model.generate(ids, use_cache=False, **options)
    assert torch.equal(without.sequences, with_a_cache.sequences)
    assert torch.equal(without.sequences, told.sequences)
    if beams == 1:
        torch.testing.assert_close(torch.stack(without.logits), torch.stack(with_a_cache.logits), **CLOSE)
    with ablate(model, HEADS, mode="zero", scope="all"):
        everywhere = model.generate(ids, use_cache=False, **options)
    assert (everywhere.logits[0] - without.logits[0]).abs().max() > 1e-4


def padded_batch(side):
    """Ids and mask [2, 20]: rows of 13 and 20 real tokens."""
    ids, mask = text(20, rows=2), torch.ones(2, 20, dtype=torch.int64)
    real = text(13, 5)[0]
    if side == "left":
        ids[0, 7:], mask[0, :7] = real, 0
        ids[0, :7] = 1
    else:
        ids[0, :13], mask[0, 13:] = real, 0
        ids[0, 13:] = 1
    return ids, mask


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES[:3])  # resampling goes by positions, which padding moves
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cache", [True, False])
def test_rows_of_a_padded_batch_are_rows_alone(model, mode, side, cache):
    ids, mask = padded_batch(side)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with ablated(model, mode):
        together = model(ids, attention_mask=mask, position_ids=places, use_cache=cache).logits
        for row in range(2):
            alone = model(ids[row : row + 1, mask[row].bool()], use_cache=cache).logits
            torch.testing.assert_close(together[row, mask[row].bool()], alone[0], **CLOSE)
    assert (alone[0, -1] - model(ids[1:]).logits[0, -1]).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("cache", [True, False])
def test_padded_generation_is_that_of_each_row(model, cache):
    ids, mask = padded_batch("left")
    options = {"max_new_tokens": 8, "do_sample": False, "use_cache": cache}
    with ablated(model):
        together = model.generate(ids, attention_mask=mask, **options)
        for row in range(2):
            alone = model.generate(ids[row : row + 1, mask[row].bool()], **options)
            assert torch.equal(together[row, 20:], alone[0, -8:])


@torch.no_grad()
def test_a_prompt_that_a_compressed_cache_reads_in_chunks_has_one_end(model):
    ids, method = text(40), SnapKV(budget=100)
    with ablated(model):
        expected = model(ids).logits[:, -1]
        for chunk in (None, 13):
            with compress(model, method) as cache:
                torch.testing.assert_close(cache.prefill(ids, chunk=chunk), expected, **CLOSE)


@torch.no_grad()
def test_new_prompts_in_one_block_are_new_prompts(model):
    one, other = text(20, 1), text(21, 2)
    with ablated(model):
        found = [model(ids, use_cache=False).logits for ids in (one, other, one, one, text(20, 3))]
    for ids, got in zip((one, other, one, one, text(20, 3)), found, strict=True):
        with ablated(model):
            assert torch.equal(model(ids, use_cache=False).logits, got)


@torch.no_grad()
def test_what_can_be_read_in_two_ways_is_refused(model):
    ids = text(30)
    advice = "give answer_from, the position of the last prompt token"
    with ablated(model):
        cache = DynamicCache(config=model.config)
        model(ids[:, :10], **with_cache(cache))
        with pytest.raises(
            HeadwiseError, match=f"whether 5 tokens over a cache are the rest of a prompt or part of the answer; {advice}"
        ):
            model(ids[:, 10:15], **with_cache(cache))
        model(ids[:, :10], use_cache=False)
        with pytest.raises(HeadwiseError, match=f"goes on where the one before ended is a new prompt; {advice}"):
            model(ids[:, :14], use_cache=False)
        with pytest.raises(HeadwiseError, match=f"needs passes of the whole model .*; {advice}"):
            model.base_model(ids)
        with pytest.raises(HeadwiseError, match=rf"shape \[batch, tokens\] only; {advice}"):
            model(text(30, 8), attention_mask=torch.ones(1, 1, 30, 30, dtype=torch.bool).tril())
    with ablated(model, answer_from=9):
        cache = DynamicCache(config=model.config)
        parts = [model(ids[:, a:b], **with_cache(cache)).logits for a, b in ((0, 10), (10, 15), (15, 30))]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(ids, use_cache=False).logits, **CLOSE)
