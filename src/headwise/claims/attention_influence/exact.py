"""Claims 5 to 8 that are exact: a head without query averages values, the formula, an exported checkpoint, one pass for both losses.

The heads are random ones, so any model can be tested; the texts are passages of the bundled books.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwise.attention.ablate import ablate
from headwise.attention.branches import branches
from headwise.attention.call import Call
from headwise.attention.plan import attached
from headwise.claims.attention_influence.real_texts import book_passages
from headwise.claims.attention_influence.statistics import mean_interval
from headwise.claims.claim import Finding, Number
from headwise.claims.experiment import Bench, Measured, NotTestable
from headwise.corpus.documents import DocumentScore, Encoded
from headwise.heads import HeadSet, HeadwiseError
from headwise.methods.influence.defaults import FLOOR
from headwise.methods.influence.proxy import SHARE
from headwise.methods.influence.scorer import AttentionInfluence
from headwise.models.export import export_ablated
from headwise.models.load import load
from headwise.models.model import Model, device_of
from headwise.prompts.encoder import PieceEncoder

FIRST = 0.4  # of the depth: no head below it, so that layers are shared
LONGEST, SHORT = 512, 128  # tokens of a document, and of the text whose attention is looked at
FAMILY = "influence-exact"


def some_heads(model: Model, seed: int) -> HeadSet:
    """A twentieth of the heads, drawn at random from the upper three fifths of the layers; at least two."""
    layers, heads = model.heads.shape
    attending = [layer for layer in model.modules if layer >= math.floor(FIRST * layers)] or list(model.modules)
    count = min(max(2, math.ceil(SHARE * len(model.modules) * heads)), len(attending) * heads)
    places = np.random.default_rng([seed, 5]).choice(len(attending) * heads, size=count, replace=False)
    return HeadSet.of(sorted((attending[place // heads], int(place % heads)) for place in places), (layers, heads), "random heads")


class _Seen:
    """Look: outputs [B, T, H, d] and values [B, KV heads, T, d] by layer."""

    def __init__(self) -> None:
        self.by_layer: dict[int, tuple[Tensor, Tensor]] = {}

    def look(self, call: Call) -> None:
        self.by_layer[call.layer] = (call.output, torch.cat(call.values, dim=2))


def uniform_difference(model: Model, heads: HeadSet, ids: Tensor) -> float:
    """Largest difference between outputs of heads without a query and means of the values so far, as a share of 1 + the mean's size.

    Args:
        model: The model.
        heads: Whose query is taken away.
        ids: [1, T] a text no longer than any sliding window.
    """
    seen, worst, group = _Seen(), 0.0, model.heads.shape[1] // model.heads.kv_heads
    with branches(model.hf, heads, "uniform") as run, attached(model.hf) as plan, plan.running(seen):
        run(ids)
    for head in heads:
        output, values = seen.by_layer[head.layer]
        own = values[-1, head.head // group].double()
        mean = own.cumsum(dim=0) / torch.arange(1, len(own) + 1, device=own.device, dtype=own.dtype)[:, None]
        apart = (output[-1, :, head.head].double() - mean).abs() / (1 + mean.abs())
        worst = max(worst, float(apart.max()))
    return worst


@torch.no_grad()
def attention_difference(hf: torch.nn.Module, model: Model, heads: HeadSet, ids: Tensor) -> float:
    """Largest difference of the heads' attention weights from 1 / (t + 1), of plain transformers' eager attention.

    Args:
        hf: The exported model.
        model: The model that it was exported from.
        heads: That were exported without a query.
        ids: [1, T] a text no longer than any sliding window.

    Raises:
        HeadwiseError: The model gives no attention weights.
    """
    hf.set_attn_implementation("eager")  # type: ignore[operator]
    weights = hf(input_ids=ids, use_cache=False, output_attentions=True).attentions
    if not weights or any(one is None for one in weights):
        raise HeadwiseError("transformers gives no attention weights of this model")
    layers = sorted(model.modules) if len(weights) == len(model.modules) else range(model.heads.shape[0])
    by_layer, size = dict(zip(layers, weights, strict=True)), ids.shape[1]
    equal = torch.ones(size, size).tril() / torch.arange(1, size + 1)[:, None]
    return max(float((by_layer[head.layer][0, head.head].float().cpu() - equal).abs().max()) for head in heads)


def exported_difference(bench: Bench, heads: HeadSet, ids: Tensor) -> Finding:
    """Claim 7 on a checkpoint that was written and loaded again."""
    model, folder = bench.model, bench.work / "exported"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        export_ablated(model, heads, "uniform", folder)
        twin = load(str(folder), str(device_of(model.hf)))
        return Finding({"bits": bits(model), "difference": attention_difference(twin.hf, model, heads, ids)})
    except HeadwiseError as error:
        return Finding.none(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@torch.no_grad()
def plain_loss(model: Model, ids: Sequence[int], bos: Sequence[int]) -> float:
    """Mean loss of a document's tokens but the first, from full logits."""
    text = torch.tensor([[*bos, *ids]], device=device_of(model.hf))
    logits = model.hf(input_ids=text, use_cache=False).logits[0, len(bos) : -1].double()
    return float(torch.nn.functional.cross_entropy(logits, text[0, len(bos) + 1 :].to(logits.device)))


def two_passes(model: Model, heads: HeadSet, documents: Sequence[Encoded]) -> NDArray[np.float64]:
    """[2, document] losses from two whole passes over each document, of the model and without the heads."""
    bos, ids = PieceEncoder(model.tokenizer).bos, [document.ids.tolist() for document in documents]
    base = [plain_loss(model, one, bos) for one in ids]
    with ablate(model.hf, heads, mode="uniform"):
        changed = [plain_loss(model, one, bos) for one in ids]
    return np.array([base, changed])


def bits(model: Model) -> float:
    """Of the numbers that the model computes with."""
    return float(torch.finfo(model.hf.dtype).bits)


def formula(rows: Sequence[DocumentScore]) -> Finding:
    """Claim 6: pairs of documents that equation 5 and the figure put into different orders."""
    kept = [row for row in rows if row.loss_base >= FLOOR]
    by_text, by_figure = np.array([row.score for row in kept]), np.array([1 - row.loss_base / row.loss_ref for row in kept])
    apart = np.sign(by_text[:, None] - by_text) * np.sign(by_figure[:, None] - by_figure) < 0
    return Finding({"differently_ordered": int(apart.sum()) // 2, "pairs": len(kept) * (len(kept) - 1) // 2, "documents": len(kept)})


def measure(bench: Bench) -> Measured:
    """All four on one model and some texts."""
    model, heads = bench.model, some_heads(bench.model, bench.seed)
    bos = PieceEncoder(model.tokenizer).bos
    try:
        scorer = AttentionInfluence(model, heads, min_tokens=0)
    except HeadwiseError as error:
        raise NotTestable(f"no losses without heads: {error}") from error
    windows = [window for window in model.heads.windows.values() if window is not None]
    room = min(scorer.max_len, LONGEST) - len(bos)
    texts = scorer.encode(book_passages(bench.pick(24, 6), bench.seed))
    documents = [Encoded(document.ids[:room]) for document in texts if len(document.ids) > 1]
    ids = torch.tensor([[*bos, *documents[0].ids.tolist()][: min(SHORT, scorer.max_len, *windows)]], device=device_of(model.hf))
    rows = scorer.score(documents)
    ours = np.array([[row.loss_base for row in rows], [row.loss_ref for row in rows]])
    plain = two_passes(model, heads, documents)
    apart = float(np.abs(ours - plain).max())
    prefix: dict[str, Number] = {"bits": bits(model), "difference": apart, "heads_cost": mean_interval(plain[1] - plain[0])}
    findings = {
        f"{FAMILY}.uniform": Finding({"bits": bits(model), "difference": uniform_difference(model, heads, ids)}),
        f"{FAMILY}.formula": formula(rows),
        f"{FAMILY}.export": exported_difference(bench, heads, ids),
        f"{FAMILY}.prefix": Finding(prefix),
    }
    lengths = [len(document.ids) for document in documents]
    details = {"heads": [str(head) for head in heads], "tokens": lengths, "first changed layer": scorer.first_layer, "tokens looked at": ids.shape[1]}
    return Measured(findings, details)
