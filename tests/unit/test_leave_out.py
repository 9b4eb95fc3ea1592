"""Leaving passages out: what remains of a prompt, and drops against plain passes over whole prompts."""

import pytest
import torch

from headwise.evaluation.leave_out import answer_logprobs, leave_one_out, without
from headwise.heads import HeadwiseError
from headwise.maths.columns import attention_rows
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt, Span
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

PROMPT = Prompt(
    tuple(range(10, 30)), {"passage/1": Span(1, 6), "answer/1": Span(3, 5), "passage/2": Span(7, 12), "question": Span(13, 20)}
)


def test_a_prompt_without_a_passage_keeps_all_else_and_its_places():
    left = without(PROMPT, ["passage/1"])
    assert left.ids == (10, *range(16, 30))
    assert left.spans == {"passage/2": Span(2, 7), "question": Span(8, 15)}
    assert left.ids[slice(*left.spans["question"])] == PROMPT.ids[slice(*PROMPT.spans["question"])]
    assert without(PROMPT, []) == PROMPT
    both = without(PROMPT, ["passage/1", "passage/2"])
    assert set(both.spans) == {"question"}
    with pytest.raises(HeadwiseError, match="no span"):
        without(PROMPT, ["passage/9"])


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_drops_are_those_of_plain_passes(family):
    model, answer = Model(tiny_model(family), character_tokenizer()), (40, 41, 42)
    told = []
    drops = leave_one_out(model, PROMPT, answer, ["passage/2", "passage/1"], lambda done, total, _: told.append((done, total)))

    def plain(ids):
        with torch.no_grad():
            logits = model.hf(torch.tensor([[*ids, *answer]]), use_cache=False).logits[0, len(ids) - 1 : -1]
        return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())

    assert list(drops) == ["passage/2", "passage/1"]
    for name, drop in drops.items():
        assert drop == pytest.approx(plain(PROMPT.ids) - plain(without(PROMPT, [name]).ids), abs=1e-4)
    assert told[-1] == (3, 3)
    with pytest.raises(HeadwiseError, match="the answer is empty"):
        answer_logprobs(model, [PROMPT], ())


@pytest.mark.parametrize("block", [3, 4096])
@pytest.mark.parametrize("extra", ["none", "cap", "sinks", "mask"])
def test_attention_rows_are_those_of_a_whole_matrix(block, extra):
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(2, 4, 3, 8, generator=generator), [torch.randn(2, 2, n, 8, generator=generator) for n in (7, 5)]
    options = {"softcap": 1.5} if extra == "cap" else {}
    if extra == "sinks":
        options["sinks"] = torch.randn(4, generator=generator)
    causal = torch.ones(3, 12, dtype=torch.bool).tril(9)[None, None]
    if extra == "mask":
        causal = causal.repeat(2, 1, 1, 1)
        causal[0, ..., :4] = False
        options["mask"] = causal
    logits = query @ torch.cat(keys, dim=2).repeat_interleave(2, dim=1).transpose(-1, -2) * 0.3
    if extra == "cap":
        logits = 1.5 * torch.tanh(logits / 1.5)
    logits = logits.masked_fill(~causal, -torch.inf)
    if extra == "sinks":
        logits = torch.cat([logits, options["sinks"].view(1, 4, 1, 1).expand(2, 4, 3, 1)], dim=-1)
    wanted = logits.softmax(dim=-1)
    for stop in (5, 12, 20):
        got = attention_rows(query, keys, scaling=0.3, stop=stop, block=block, **options)
        torch.testing.assert_close(got[..., : min(stop, 12)], wanted[..., : min(stop, 12)], atol=1e-6, rtol=1e-5)
        assert not got[..., 12:].any()
