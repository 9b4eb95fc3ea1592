"""Function vectors: what chosen heads give at the last token of a prompt, and all that is needed to give it again elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np
import torch

from headwise.attention.vectors import HeadVectors, check_insertion, insert, record
from headwise.heads.errors import HeadwiseError
from headwise.heads.text import shorten
from headwise.heads.types import Heads, HeadSet
from headwise.models.forward import token_tensor
from headwise.models.model import Model, as_model, describe_model
from headwise.prompts.prompt import Prompt

Ids = Prompt | Sequence[int]


@dataclass(frozen=True, eq=False)
class FunctionVectors:
    """Vectors of heads, and how they are put in.

    Attributes:
        vectors: One per head.
        mode: `replace` or `add`, see `headwise.insert`.
        scale: Factor of the vectors.
        provenance: Where they come from; plain JSON data.

    Raises:
        HeadwiseError: An unknown mode, a scale that is no finite number, or one that is too large for the vectors.
    """

    vectors: HeadVectors
    mode: str = "replace"
    scale: float = 1.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", check_insertion(self.mode, [self.scale])[0])
        if not torch.isfinite(self.vectors.values * self.scale).all():  # a file of them could never be put in
            raise HeadwiseError(f"vectors times {self.scale:g} do not fit into float32; lower the scale")

    @contextmanager
    def inserted(self, model: Any, answer_from: int | None = None) -> Iterator[None]:
        """Inside the block the model's heads give these vectors; see `headwise.insert`.

        Args:
            model: A `Model`, or a transformers model.
            answer_from: Position of the last prompt token, where the passes do not tell.
        """
        with insert(model, self.vectors, self.mode, self.scale, answer_from):
            yield


@torch.no_grad()
def extract_vectors(model: Any, heads: Heads | None, prompts: Ids | Sequence[Ids], average: bool = False) -> HeadVectors:
    """Outputs of heads at the last token of a prompt (Kahardipraja et al. 2025, section 5): of one prompt, not averaged over several.

    Args:
        model: A `Model`, or a transformers model.
        heads: N heads; None for all heads of all layers with softmax attention.
        prompts: One prompt (a `Prompt`, or token ids), or several with `average`.
        average: Take the mean over several prompts (what other works call a function vector).

    Returns:
        Vectors [N, d] in front of the output projection, float32.

    Raises:
        HeadwiseError: No prompt, an empty one, several without `average`, no heads, or heads of another model.
    """
    wrapped = as_model(model)
    given = prompt_list(prompts)
    if len(given) > 1 and not average:
        raise HeadwiseError(
            f"{len(given)} prompts were given; vectors come from one prompt, or from the average of several (average)"
        )
    chosen = every_head(wrapped) if heads is None else wrapped.check(heads)
    total = torch.zeros(len(chosen), wrapped.heads.head_dim)
    for ids in given:
        with record(wrapped, chosen) as seen:
            wrapped.hf(input_ids=token_tensor(wrapped.hf, ids), use_cache=False, logits_to_keep=1)
        total += seen.outputs[0, 0].float().cpu()
    return HeadVectors(chosen, total / len(given))


def function_vectors(
    model: Any, heads: Heads, prompts: Ids | Sequence[Ids], mode: str = "replace", scale: float = 1.0, average: bool = False
) -> FunctionVectors:
    """Extract function vectors, with where they come from. Arguments and errors as `extract_vectors` and `FunctionVectors` have them."""
    wrapped = as_model(model)
    vectors = extract_vectors(wrapped, heads, prompts, average)
    return FunctionVectors(vectors, mode, scale, describe_vectors(wrapped, vectors, prompt_list(prompts)))


def describe_vectors(model: Model, vectors: HeadVectors, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Where vectors come from, as plain data; of the prompts a digest only."""
    told = json.dumps([list(ids) for ids in prompts]).encode()
    return describe_model(model) | {
        "fingerprint": model.fingerprint,
        "chosen_by": vectors.heads.chosen_by,
        "prompts": len(prompts),
        "prompts_digest": hashlib.sha256(told).hexdigest()[:16],
    }


def every_head(model: Model) -> HeadSet:
    """All heads of all layers with softmax attention."""
    heads = [(layer, head) for layer in model.modules for head in range(model.heads.shape[1])]
    return HeadSet.of(heads, model.heads.shape, "all heads")


def prompt_list(prompts: Ids | Sequence[Ids]) -> list[tuple[int, ...]]:
    """Token ids of one prompt or of several, tables of numpy and torch too. Raises `HeadwiseError` for none, an empty one, or no ids."""
    given: Any = prompts.tolist() if isinstance(prompts, np.ndarray | torch.Tensor) else prompts
    try:
        single = isinstance(given, Prompt) or (len(given) > 0 and not isinstance(given[0], Prompt) and np.ndim(given[0]) == 0)
        several = [given] if single else given
        found = [tuple(index(token) for token in (one.ids if isinstance(one, Prompt) else one)) for one in several]
    except (TypeError, ValueError) as error:
        raise HeadwiseError(f"prompts must be token ids, or a list of them; got {shorten(repr(prompts))}") from error
    if not found or not all(found):
        raise HeadwiseError("vectors come from the last token of a prompt; the prompt is empty")
    return found
