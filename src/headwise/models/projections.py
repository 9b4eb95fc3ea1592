"""Where the projections of attention lie in a model of any family, and which of their output rows make the query or key of one head."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadId
from headwise.models.model import Model

PARTS = ("query", "key", "value", "output")
# The module that makes queries, keys and values together, in families that have one.
TOGETHER = {"fused": "qkv_proj", "interleaved": "query_key_value", "conv": "c_attn"}


class Rows(NamedTuple):
    """Output rows of a projection.

    Attributes:
        name: Of the projection, in its attention module.
        first: The first row.
        size: How many.
    """

    name: str
    first: int
    size: int


def query_rows(model: Model, head: HeadId) -> Rows:
    """The rows that make the query of a head."""
    dim, kind = model.heads.head_dim, model.family.query
    each = {"gated": 2 * dim, "interleaved": 3 * dim}.get(kind, dim)
    return Rows(TOGETHER.get(kind, "q_proj"), head.head * each, dim)


def key_rows(model: Model, head: HeadId) -> Rows:
    """The rows that make the key which a head reads; heads of one KV group share them."""
    dim, kind, heads = model.heads.head_dim, model.family.query, model.heads.shape[1]
    own = head.head // (heads // model.heads.kv_heads)
    if kind == "interleaved":
        return Rows(TOGETHER[kind], (3 * own + 1) * dim, dim)
    return Rows(TOGETHER[kind], (heads + own) * dim, dim) if kind in TOGETHER else Rows("k_proj", own * dim, dim)


def projections(model: Model, parts: Collection[str] = PARTS, layers: Collection[int] | None = None) -> list[str]:
    """Names of the modules that make queries, keys, values, or attention's output.

    Args:
        model: The model.
        parts: Of `PARTS`. Where one module makes several of them, it is named for each.
        layers: Layers with softmax attention; None: all.

    Returns:
        Names inside the transformers model, layer by layer, each once.

    Raises:
        HeadwiseError: An unknown part, or a layer without heads.
    """
    if unknown := sorted(set(parts) - set(PARTS)):
        raise HeadwiseError(f"unknown projection {unknown[0]!r}; use {', '.join(PARTS)}")
    chosen = list(model.modules) if layers is None else sorted(layers)
    if missing := [layer for layer in chosen if layer not in model.modules]:
        raise HeadwiseError(f"layer {missing[0]} of {model.name} has no attention heads")
    together = TOGETHER.get(model.family.query)
    own = {"query": together or "q_proj", "key": together or "k_proj", "value": together or "v_proj", "output": model.family.output}
    names = {id(module): name for name, module in model.hf.named_modules()}
    found = (f"{names[id(model.modules[layer])]}.{own[part]}" for layer in chosen for part in PARTS if part in parts)
    return list(dict.fromkeys(found))
