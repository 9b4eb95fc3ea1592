"""The one place that calls a model with a cache: the name of that argument changes between releases of transformers."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from torch import Tensor

from headwise.models.rope import one_table


def forward(hf: Any, input_ids: Tensor, cache: Any, **options: Any) -> Any:
    """One pass of a transformers model over a cache. The argument is `past_key_values` up to transformers 5.23 and `cache` from 5.24 on.

    Where the rotary table depends on the text's length, see `headwise.models.rope`.

    Args:
        hf: The model.
        input_ids: [B, T], appended to the cache.
        cache: A cache of transformers.
        options: Go to the model as they are.

    Returns:
        What the model returns.
    """
    kind: Any = type(hf)
    name = cache_argument(kind)
    with one_table(hf, cache, input_ids.shape[1], options.get("position_ids")):
        return hf(input_ids=input_ids, use_cache=True, **{name: cache}, **options)


@cache
def cache_argument(kind: Any) -> str:
    """What the `forward` of a model class calls its cache."""
    return "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"
