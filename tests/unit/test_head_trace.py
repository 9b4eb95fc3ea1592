"""Traces of heads: the weights are those of written-out attention, the planted head looks at the needle, the model stays as it was."""

import pytest
import torch

from headwise.heads import HeadId, HeadSet, HeadwiseError
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt
from headwise.runtime.head_trace import text_pieces, trace_heads
from headwise.testing.planted import planted_copier
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

IDS = tuple(range(5, 29))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "gpt_oss"])
def test_weights_are_those_of_written_out_attention(family):
    hf = tiny_model(family)
    model = Model(hf, character_tokenizer())
    heads = HeadSet.of([(1, 2), (0, 1), (1, 0)], model.heads.shape)
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    trace = trace_heads(model, Prompt(IDS), heads, stop=(), limit=4, keep=3)
    assert all(torch.equal(before[name], value) for name, value in hf.state_dict().items())
    assert trace.positions.shape == trace.weights.shape == (3, 4, 3)
    assert len(trace.ids) == 4
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        text = torch.tensor([[*IDS, *trace.ids]])
        seen = hf(text, output_attentions=True, use_cache=False).attentions
    for i, head in enumerate(heads):
        for step in range(4):
            row = seen[head.layer][0, head.head, len(IDS) - 1 + step]
            wanted = row.topk(3)
            torch.testing.assert_close(trace.weights[i, step], wanted.values.float(), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(row[trace.positions[i, step]].float(), wanted.values.float(), atol=1e-5, rtol=1e-4)


def test_the_planted_head_looks_at_what_is_said_next():
    hf, tokenizer = planted_copier()
    model = Model(hf, tokenizer)
    ids = tuple(tokenizer.encode("the river was slow and wide . we took a boat to see . the river was"))
    trace = trace_heads(model, Prompt(ids), HeadSet.of([(1, 2)], model.heads.shape), stop=(), limit=3)
    text = [*ids, *trace.ids]
    top = trace.positions[0, :, 0].tolist()
    assert [text[i] for i in top] == list(trace.ids)
    assert trace.weights[0, :, 0].min() > 0.9
    assert trace.heads == (HeadId(1, 2),)
    plain = trace.plain()
    assert plain["heads"]["L1H2"][0] == trace.positions[0].tolist()
    assert max(plain["heads"]["L1H2"][1][0]) <= 1000
    assert plain["prompt"] == len(ids)


def test_pieces_join_to_the_text():
    tokenizer = character_tokenizer()
    ids = tokenizer.encode("a needle, and hay")
    assert "".join(text_pieces(tokenizer, ids)) == tokenizer.decode(ids)
    assert len(text_pieces(tokenizer, ids)) == len(ids)


class Bytes:
    """One token per byte, as byte-level tokenizers have for rare letters."""

    def decode(self, ids, **options):
        return bytes(ids).decode("utf-8", errors="replace")


def test_a_letter_of_several_tokens_is_written_once():
    text = "aé€b"
    ids = list(text.encode())
    pieces = text_pieces(Bytes(), ids)
    assert "".join(pieces) == text
    assert pieces == ("a", "", "é", "", "", "€", "b")
    assert "".join(text_pieces(Bytes(), ids[:2])) == "a�"


def test_few_keys_are_filled_up():
    hf = tiny_model("llama")
    model = Model(hf, character_tokenizer())
    trace = trace_heads(model, Prompt((5, 6)), HeadSet.of([(0, 0)], model.heads.shape), stop=(), limit=1, keep=4)
    assert trace.positions[0, 0, 2:].tolist() == [-1, -1]
    assert trace.weights[0, 0].sum().item() == pytest.approx(1)


def test_wrong_input_is_refused():
    hf = tiny_model("llama")
    model = Model(hf, character_tokenizer())
    one = HeadSet.of([(0, 0)], model.heads.shape)
    with pytest.raises(HeadwiseError, match="no heads to trace"):
        trace_heads(model, Prompt(IDS), HeadSet((), model.heads.shape), stop=())
    with pytest.raises(HeadwiseError, match="at least 1 position per step must be kept; got 0"):
        trace_heads(model, Prompt(IDS), one, stop=(), keep=0)
    with pytest.raises(HeadwiseError, match="these heads belong to a model of 9 layers"):
        trace_heads(model, Prompt(IDS), HeadSet.of([(0, 0)], (9, 9)), stop=())
