"""Control tokens: new tokens in front of a prompt that tell a model which of two ways to answer (RHIO, Huang et al. 2025, arXiv:2501.13573)."""

from __future__ import annotations

import copy
from typing import Any

import torch

from headwise.heads.errors import HeadwiseError
from headwise.models.adapters import grow_embedding
from headwise.models.model import Model, need_tokenizer
from headwise.prompts.control import CONTROL, control_ids

NOISE = 1.0  # of the new rows, in standard deviations of the embedding, so that they differ as much as other tokens do; alike rows part slowly


def with_control_tokens(model: Model, seed: int = 0) -> Model:
    """The model with two new tokens. Its embedding grows in place; the tokenizer is a copy.

    Both begin as the mean embedding with noise as wide as the embedding itself, different for each. They learn where `with_lora` is told so, and
    are saved with the adapter, with the tokenizer beside it.

    Args:
        model: With its tokenizer, without an adapter.
        seed: Of the noise.

    Returns:
        The same transformers model with the new tokenizer.

    Raises:
        HeadwiseError: The tokenizer knows such a token already, or there is none.
    """
    tokenizer: Any = copy.deepcopy(need_tokenizer(model, "control tokens").tokenizer)
    if known := sorted(set(CONTROL) & set(tokenizer.get_vocab())):
        raise HeadwiseError(f"the tokenizer of {model.name} has a token {known[0]} already; train the model that headwise train rhio started from")
    before = model.hf.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens(list(CONTROL), special_tokens=True)
    grow_embedding(model.hf, tokenizer)
    ids = control_ids(tokenizer)
    weight = model.hf.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        old = weight[:before].float()
        noise = torch.randn(len(ids), weight.shape[1], generator=generator).to(old)
        weight[list(ids)] = (old.mean(dim=0) + NOISE * old.std(dim=0) * noise).to(weight)
    return Model(model.hf, tokenizer, model.name)
