"""LoRA adapters of attention for training, and the rows of them that may learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headwise.heads.errors import HeadwiseError
from headwise.heads.types import HeadSet
from headwise.models.adapters import adapted_parts, require_peft
from headwise.models.model import Model
from headwise.models.projections import key_rows, projections, query_rows
from headwise.models.weights import check_unpacked
from headwise.train.options import Tuning


def with_lora(model: Model, options: Tuning, heads: HeadSet | None = None, tokens: Sequence[int] = ()) -> Model:
    """The model with a new adapter that can be trained; it changes nothing yet (its second factor is 0).

    The layers of `model` itself run with the adapter from now on; `result.adapter.unload()` takes it away.

    Args:
        model: Without an adapter.
        options: Rank, projections, seed.
        heads: With `options.rows`: those whose queries and keys may learn.
        tokens: Tokens whose embedding learns, too, and is saved with the adapter.

    Returns:
        The same model around which the adapter lies. All other weights are frozen.

    Raises:
        HeadwiseError: The model has an adapter already, its weights are packed, or `rows` without heads.
        MissingExtraError: peft is not installed.
    """
    require_peft()
    from peft import LoraConfig, get_peft_model

    if model.adapter is not None or adapted_parts(model.hf):
        raise HeadwiseError(
            f"{model.name} has an adapter already; train its merged checkpoint (headwise train writes it beside the adapter; peft: merge_and_unload)"
        )
    if options.rows and not heads:
        raise HeadwiseError("rows needs the heads whose queries and keys may learn")
    check_unpacked(model)
    layers = None if not options.rows or heads is None else sorted({head.layer for head in heads})
    config = LoraConfig(
        r=options.rank,
        lora_alpha=2 * options.rank,
        lora_dropout=0.0,
        target_modules=projections(model, options.parts, layers),
        fan_in_fan_out=model.family.query == "conv",
        task_type="CAUSAL_LM",
        trainable_token_indices={_embedding(model): list(tokens)} if tokens else None,
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of what peft asks transformers 5.24
        torch.manual_seed(options.seed)
        wrapped: Any = get_peft_model(model.hf, config).train(model.hf.training)
    made = Model(wrapped, model.tokenizer, model.name)
    if options.rows and heads is not None:
        _learn_rows(made, heads, options)
    return made


def _embedding(model: Model) -> str:
    own = model.hf.get_input_embeddings()
    return str(next(name for name, module in model.hf.named_modules() if module is own))


def _learn_rows(model: Model, heads: HeadSet, options: Tuning) -> None:
    """Zero the gradients of all rows that no chosen head uses. They begin at 0 and AdamW without weight decay leaves them there."""
    wanted: dict[tuple[int, str], list[int]] = {}
    rows = {"query": query_rows, "key": key_rows}
    for head in heads:
        for part in options.parts:
            name, first, size = rows[part](model, head)
            wanted.setdefault((head.layer, name), []).extend(range(first, first + size))
    for (layer, name), chosen in wanted.items():
        weight = getattr(model.modules[layer], name).lora_B["default"].weight  # [rows, rank]
        mask = torch.zeros(weight.shape[0], 1, dtype=weight.dtype, device=weight.device)
        mask[sorted(set(chosen))] = 1
        weight.register_hook(lambda gradient, mask=mask: _masked(gradient, mask))


def _masked(gradient: Tensor, mask: Tensor) -> Tensor:
    return gradient * mask.to(gradient)
