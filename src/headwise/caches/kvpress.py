"""headwise presses as kvpress presses (version 0.5.5), for the wrappers, pipeline and evaluation of kvpress.

kvpress needs transformers below 5.3 and headwise a newer one, so the two meet only in an environment made for this purpose: docs/kvpress.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headwise.caches.allocation import Uniform
from headwise.caches.kept_layer import View
from headwise.caches.press import Press, WindowPress
from headwise.heads.errors import HeadwiseError, MissingExtraError
from headwise.maths.select import protected
from headwise.models.model import Model, as_model

QUERIES = ("llama", "mistral", "phi3", "qwen2", "qwen3")  # model types whose queries kvpress can recompute


class MissingKvpressError(MissingExtraError):
    """kvpress is needed; it is no extra of headwise, because the two want different versions of transformers."""

    def __init__(self) -> None:
        ImportError.__init__(self, "kvpress is not installed; it needs an environment of its own, see docs/kvpress.md")


def as_kvpress(press: Press, model: Model | None = None) -> Any:
    """A `ScorerPress` of kvpress that scores as `press` does; use it as any other: `with made(model): ...`.

    Sinks and the window of `press` get the highest scores. kvpress keeps int(S x (1 - ratio)) positions of each KV head, headwise
    round(S x (1 - ratio)) and never less than sinks and window.

    Args:
        press: With a compression ratio and equal budgets.
        model: The model it will run on; None: read from the model when the block begins.

    Returns:
        The press, with the compression ratio of `press`; wrappers of kvpress may change that, and then theirs counts.

    Raises:
        MissingKvpressError: kvpress is not installed.
        HeadwiseError: A press with an absolute budget or with unequal budgets, and methods that are no `Press` (DuoAttention keeps windows,
            not scored positions).
    """
    if not isinstance(press, Press):
        raise HeadwiseError(
            f"only presses that score positions fit kvpress (SnapKV, StreamingLLM, ...); got {type(press).__name__}"
        )
    if press.compression_ratio is None:
        raise HeadwiseError("kvpress counts by share of the prompt; give the press a compression_ratio in place of a budget")
    if press.allocation != Uniform():
        raise HeadwiseError(
            f"kvpress keeps equally many positions in all heads and layers, so {type(press.allocation).__name__} budgets do not fit; "
            "use a press with Uniform, if need be inside kvpress's AdaKVPress"
        )
    found = _press_class()(compression_ratio=press.compression_ratio, press=press)
    if model is not None:
        found.use(model)
    return found


def _press_class() -> Any:
    """The subclass, made when it is asked for: its base is in kvpress."""
    try:
        from kvpress import ScorerPress
        from kvpress.utils import get_prerope_query_states
    except ImportError as error:
        raise MissingKvpressError from error

    @dataclass
    class HeadwisePress(ScorerPress):  # type: ignore[misc]  # kvpress is not typed
        """A press of headwise; its `compression_ratio` may be changed by kvpress's wrappers, and then theirs counts."""

        press: Any = None
        model = None  # no field: the name of a run is made of the fields

        def use(self, model: Model) -> None:
            """Work on models of this model; `HeadwiseError` if the press does not fit."""
            self.press.check(model)
            self.model = model

        def post_init_from_model(self, hf: Any) -> None:
            """Called by kvpress when a block begins."""
            self.use(as_model(hf))

        def score(
            self,
            module: nn.Module,
            hidden_states: Tensor,
            keys: Tensor,
            values: Tensor,
            attentions: Tensor | None,
            kwargs: dict[str, Any],
        ) -> Tensor:
            """Called by kvpress in the prefill of each layer.

            Args:
                module: The layer's attention.
                hidden_states: [B, S, width], what it read.
                keys: [B, KV heads, S, d] after rotation.
                values: [B, KV heads, S, d].
                attentions: Not used.
                kwargs: What the attention was called with; its `position_embeddings` are used.

            Returns:
                [B, KV heads, S] float32.
            """
            if self.model is None:
                raise HeadwiseError("give as_kvpress the Model, or use the press as `with press(model)`")
            last = _looking_back(self.press, module, hidden_states, keys)
            query = keys.new_empty(keys.shape[0], self.model.heads.shape[1], 0, keys.shape[-1])
            if last:
                cos, sin = (part[:, -last:] for part in kwargs["position_embeddings"])
                query = rotated(get_prerope_query_states(module, hidden_states[:, -last:]), cos, sin)
            return marked_scores(self.press, module, query, keys, values, self.model)

    HeadwisePress.__qualname__ = "HeadwisePress"
    return HeadwisePress


def _looking_back(press: Press, module: Any, hidden_states: Tensor, keys: Tensor) -> int:
    """How many of the last queries a press needs: those of window presses; all others score without queries."""
    if not isinstance(press, WindowPress):
        return 0
    kind = module.config.model_type
    if kind not in QUERIES:
        raise HeadwiseError(f"kvpress cannot recompute the queries of {kind!r} models; known: {', '.join(QUERIES)}")
    if hidden_states.shape[1] != keys.shape[2]:
        raise HeadwiseError(
            f"a window press scores a prompt that was read in one pass; got {hidden_states.shape[1]} tokens and {keys.shape[2]} keys"
        )
    return min(press.queries or press.window, keys.shape[2])


def rotated(query: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (RoPE, Su et al. 2021, arXiv:2104.09864, section 3.4.2) as Llama lays them out: number i turns with number i + r / 2.

    Args:
        query: [B, H, T, d] before rotation.
        cos: [B or 1, T, r] with r <= d; the numbers from r on stay as they are.
        sin: [B or 1, T, r].

    Returns:
        [B, H, T, d].
    """
    turning, still = query[..., : cos.shape[-1]], query[..., cos.shape[-1] :]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
    return torch.cat([turned, still], dim=-1)


def marked_scores(press: Press, module: Any, query: Tensor, keys: Tensor, values: Tensor, model: Model) -> Tensor:
    """The press's scores, with sinks and window 1 above the highest, so that every top-k takes them first.

    They are finite because wrappers of kvpress multiply scores and take means of them.

    Args:
        press: Of headwise.
        module: The attention module, for its layer and scaling.
        query: [B, H, T, d] after rotation: the queries that look back, T = 0 for a press that needs none.
        keys: [B, KV heads, S, d] after rotation, without padding.
        values: [B, KV heads, S, d].
        model: Whose layer it is.

    Returns:
        [B, KV heads, S] float32.
    """
    batch, heads, length = keys.shape[:3]
    positions = torch.arange(length, dtype=torch.int32, device=keys.device)[None]  # kvpress knows no padding
    layer = module.layer_idx
    cap, sinks = model.attention_cap, model.part("sinks", layer)
    view = View(layer, query, keys, values, positions, module.scaling, cap, sinks, model)
    scores = press.scores(view).float().expand(batch, heads, length)
    return scores.masked_fill(protected(positions, press.sinks, press.window)[:, None], float(scores.max()) + 1)
