"""AttentionInfluence against plain transformers: the same two losses per document, on the same documents, in one run.

`vs_two_pass`: tokens per second over a loop of two passes (documents in file order, padded batches, SDPA, full logits).
`vs_two_pass_bucketed`: the same loop over batches of documents of similar length, as many tokens each as the scorer's.
`vs_one_forward`: time over one plain pass of those batches with its loss (what a perplexity filter costs);
`vs_one_forward_without_loss`: over the pass alone. `by_operations`: what the multiplications alone would make of the latter.
A random Llama, whose first changed layer is the first one at 40 % of the depth or above; or --model NAME with --heads FILE, of which the
strongest 5 % are ablated (without a file: as of the random one). Lengths are log-normal, tokens random.
"""

from __future__ import annotations

import argparse
import copy
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import best_of, hardware, show
from stream import overhead

from headwise.corpus.documents import Encoded, batches_of, windows_of
from headwise.heads import HeadSet, load_heads
from headwise.methods.influence.proxy import top_share
from headwise.methods.influence.scorer import AttentionInfluence
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.weights import silence_in_weights
from headwise.testing.tokenizers import character_tokenizer

DEPTH, SHARE = 0.4, 0.05  # of the first changed layer; of heads
MEDIAN, SPREAD, LONGEST = 300, 0.9, 2048  # tokens; standard deviation of their logarithm
FILE_ORDER = 8  # documents per batch of the plain loop

Batch = list[Encoded]


def random_llama(layers: int, width: int, vocabulary: int) -> Model:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=LONGEST,
        attn_implementation="sdpa",
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    tokenizer = character_tokenizer()
    tokenizer.bos_token = None  # plain ids are compared
    return Model(model, tokenizer)


def heads_from(model: Model) -> HeadSet:
    """5 % of the heads, spread over the layers from 40 % of the depth on."""
    layers, heads = model.heads.shape
    first, count = math.ceil(DEPTH * layers), math.ceil(SHARE * layers * heads)
    return HeadSet.of([(first + i % (layers - first), (3 * i) % heads) for i in range(count)], model.heads.shape)


def documents(count: int, vocabulary: int) -> Batch:
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(math.log(MEDIAN), SPREAD, count)).clip(16, LONGEST).astype(int)
    return [Encoded(rng.integers(1, vocabulary, n).astype(np.int32)) for n in lengths]


def in_file_order(texts: Batch) -> list[Batch]:
    return [texts[i : i + FILE_ORDER] for i in range(0, len(texts), FILE_ORDER)]


def by_length(texts: Batch, tokens: int) -> list[Batch]:
    windows = windows_of([len(text.ids) for text in texts], LONGEST)
    return [[texts[window.document] for window in batch] for batch in batches_of(windows, tokens)]


def padded(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(text.ids).long() for text in batch], batch_first=True)
    lengths = torch.tensor([len(text.ids) for text in batch])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


@torch.no_grad()
def plain_losses(model: torch.nn.Module, batches: Sequence[Batch]) -> list[float]:
    """Mean loss per document, as a plain loop computes it."""
    found = []
    for batch in batches:
        ids, mask = padded(batch)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        labels = torch.nn.functional.pad(ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100), (0, 1), value=-100)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=-100)
        found += (losses.view_as(labels).sum(dim=1) / mask[:, 1:].sum(dim=1)).tolist()
    return found


@torch.no_grad()
def forward(model: torch.nn.Module, batches: Sequence[Batch]) -> None:
    for batch in batches:
        ids, mask = padded(batch)
        model(input_ids=ids, attention_mask=mask, use_cache=False)


def speed(repeats: int, count: int, model: Model, heads: HeadSet) -> dict[str, object]:
    """The three ratios, and what they were measured on."""
    texts = documents(count, model.hf.config.vocab_size)
    reference = copy.deepcopy(model.hf)
    silence_in_weights(reference, heads, "uniform")
    scorer = AttentionInfluence(model, heads)
    rows, buckets = in_file_order(texts), by_length(texts, scorer.tokens_per_batch)

    def two_passes(batches: list[Batch]) -> list[list[float]]:
        return [plain_losses(hf, batches) for hf in (model.hf, reference)]

    ours, plain = scorer.score(texts), two_passes(rows)
    worst = max(
        max(abs(row.loss_base - a), abs(row.loss_ref - b)) for row, a, b in zip(ours, *plain, strict=True)
    )  # the first run of each also warms up
    forward(model.hf, buckets)
    times = best_of(
        repeats, lambda: scorer.score(texts), lambda: two_passes(rows), lambda: two_passes(buckets),
        lambda: plain_losses(model.hf, buckets), lambda: forward(model.hf, buckets),
    )  # fmt: skip
    body, top = sum(p.numel() for p in model.hf.model.layers.parameters()), model.hf.lm_head.weight.numel()
    tokens = sum(len(text.ids) for text in texts)
    return {
        "vs_two_pass": times[1] / times[0],
        "vs_two_pass_bucketed": times[2] / times[0],
        "vs_one_forward": times[0] / times[3],
        "vs_one_forward_without_loss": times[0] / times[4],
        "by_operations": 2 - scorer.first_layer / model.heads.shape[0] * body / (body + top),
        "tokens_per_second": tokens / times[0],
        "largest_difference_of_losses": worst,
        "tokens": tokens,
        "documents": count,
        "padding_in_file_order": 1 - tokens / sum(padded(batch)[0].numel() for batch in rows),
        "padding_by_length": 1 - tokens / sum(padded(batch)[0].numel() for batch in buckets),
        "first_changed_layer": scorer.first_layer,
        "layers": model.heads.shape[0],
        "heads_left_out": len(heads),
        "parameters_of_the_layers": body,
        "parameters_of_the_head": top,
        "tokens_per_batch": scorer.tokens_per_batch,
        "repeats": repeats,
    }


def stream_overhead() -> float:
    """Wall time of a job over files above the time in its scorer, as a share of the latter (see `stream.py`)."""
    with tempfile.TemporaryDirectory() as folder:
        return float(overhead(Path(folder))["stream_overhead"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--model", help="a real model in place of the random one")
    parser.add_argument("--heads", help="its head file, for example of the proxy task; the strongest 5 %% are ablated")
    parser.add_argument("--no-stream", action="store_true", help="leave out the measurement of files (see stream.py)")
    chosen = parser.parse_args()
    model = load(chosen.model) if chosen.model else random_llama(chosen.layers, chosen.width, chosen.vocabulary)
    heads = top_share(load_heads(chosen.heads)) if chosen.heads else heads_from(model)
    result = speed(chosen.repeats, chosen.documents, model, heads) | {"model": chosen.model or "a random Llama"}
    if not chosen.no_stream:
        result["stream_overhead"] = stream_overhead()
    show({**result, "hardware": hardware()}, chosen.json)


if __name__ == "__main__":
    main()
