"""What holds exactly of contrast and of new tokens, on any model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

import headwise as hw
from headwise.attention.ablate import ablate
from headwise.claims.claim import Finding
from headwise.claims.experiment import Bench, Measured
from headwise.heads.types import HeadId, HeadSet
from headwise.models.model import Model
from headwise.models.projections import projections
from headwise.prompts.control import control_ids
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts
from headwise.runtime.branches import Without, negative_of, opened
from headwise.train.control import with_control_tokens

HEADS, ANSWER = 6, 4
Ids = tuple[int, ...]


def measure(bench: Bench) -> Measured:
    """All four claims on a stretch of a novel."""
    model = bench.load()  # one of our own: the last claim grows its embedding
    encoder, length = PieceEncoder(model.tokenizer), bench.pick(200, 60)
    ids = (*encoder.bos, *encoder.encode(bundled_texts()[0][: 12 * length])[:length])
    heads = spread_heads(model)
    parts = {
        "branches": partial(branches, model, ids, heads), "alpha_zero": partial(alpha_zero, model, ids, heads),
        "zeroed": partial(zeroed, model, ids, heads), "new_tokens": partial(new_tokens, model, ids),
    }  # fmt: skip
    findings = {}
    for done, (name, find) in enumerate(parts.items()):
        bench.report(done, len(parts), name)
        findings[f"rhio.exact.{name}"] = find()
    return Measured(findings, {"tokens": len(ids), "heads": [str(head) for head in heads]})


def spread_heads(model: Model) -> HeadSet:
    """Some heads of all depths."""
    layers, count = sorted(model.modules), model.heads.shape[1]
    places = [layers[round(i * (len(layers) - 1) / (HEADS - 1))] for i in range(HEADS)]
    return HeadSet(tuple(sorted({HeadId(layer, (3 * i) % count) for i, layer in enumerate(places)})), model.heads.shape)


@torch.no_grad()
def logits(model: Model, ids: Ids) -> Tensor:
    """[V] behind the last token, in one pass without a cache."""
    found: Tensor = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
    return found


@torch.no_grad()
def branches(model: Model, ids: Ids, heads: HeadSet) -> Finding:
    """Both branches behind the prompt and behind each token of an answer, beside separate passes."""
    answer = ids[1 : 1 + ANSWER]
    other = (ids[len(ids) // 2], *ids[1:])
    worst, apart = 0.0, []
    for negative in (Without(heads), Without(heads, "uniform", "all"), other):
        with opened(model, ids, negative_of(model, negative, ids)) as advance:
            together = [advance(token).float() for token in (None, *answer)]
        for number, rows in enumerate(together):
            said = answer[:number]
            wanted = torch.stack([logits(model, (*ids, *said)), _without(model, ids, said, negative)])
            worst = max(worst, float((rows - wanted).abs().max()))
            apart.append(float((rows[0] - rows[1]).abs().max()))
    return Finding({"largest_difference": worst, "apart": round(min(apart), 4)})


def _without(model: Model, ids: Ids, said: Ids, negative: Any) -> Tensor:
    """The negative branch in one pass of its own."""
    if not isinstance(negative, Without):
        return logits(model, (*negative, *said))
    place = len(ids) - 1 if negative.scope == "answer" else None
    with ablate(model.hf, negative.heads, negative.mode, negative.scope, answer_from=place):
        return logits(model, (*ids, *said))


def alpha_zero(model: Model, ids: Ids, heads: HeadSet) -> Finding:
    """Greedy answers, and those of the contrast with no weight and with much."""
    plain = list(ids)
    for _ in range(ANSWER):
        plain.append(int(logits(model, tuple(plain)).argmax()))
    wanted = plain[len(ids) :]
    counts = {}
    for name, alpha in (("other_tokens", 0.0), ("moved", 3.0)):
        said = list(hw.contrastive_generate(model, ids, Without(heads), alpha, max_new_tokens=ANSWER).ids)
        counts[name] = float(sum(a != b for a, b in zip(said, wanted, strict=False)))  # the contrast may end at a stop token
    return Finding(counts)


def zeroed(model: Model, ids: Ids, heads: HeadSet) -> Finding:
    """Heads taken away by our own step, and by a hook on every output projection."""
    before = logits(model, ids)
    with ablate(model.hf, heads, "zero", "all"):
        ours = logits(model, ids)
    with hooked(model, heads):
        theirs = logits(model, ids)
    return Finding({"largest_difference": float((ours - theirs).abs().max()), "moved": round(float((ours - before).abs().max()), 4)})


@contextmanager
def hooked(model: Model, heads: HeadSet) -> Iterator[None]:
    """The recipe of the card: the input of the output projection, seen as heads, is 0 where a head is taken away."""
    modules, dim = dict(model.hf.named_modules()), model.heads.head_dim
    handles = []
    for layer in sorted({head.layer for head in heads}):
        own = [head.head for head in heads if head.layer == layer]

        def zero(module: Any, given: tuple[Tensor, ...], own: list[int] = own) -> tuple[Tensor, ...]:
            parts = given[0].reshape(*given[0].shape[:-1], -1, dim).clone()
            parts[..., own, :] = 0
            return (parts.flatten(-2), *given[1:])

        (name,) = projections(model, ("output",), [layer])
        handles.append(modules[name].register_forward_pre_hook(zero))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def new_tokens(model: Model, ids: Ids) -> Finding:
    """Logits of the old tokens before and behind the embedding's growth, and the two new rows."""
    before = logits(model, ids)
    known = len(model.tokenizer)
    grown = with_control_tokens(model)
    after = logits(grown, ids)
    rows = grown.hf.get_input_embeddings().weight[list(control_ids(grown.tokenizer))].detach()
    changed = float((after[:known] - before[:known]).abs().max())
    return Finding({"largest_difference": changed, "apart": float((rows[0] - rows[1]).abs().max())})
