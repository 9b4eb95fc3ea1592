"""headwise: find, test and use retrieval heads, the attention heads that carry information from a long context into the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise.lazy import lazy_names

if TYPE_CHECKING:
    from headwise.attention.ablate import ablate
    from headwise.attention.means import head_means
    from headwise.attention.observe import observe
    from headwise.attention.steer import steer
    from headwise.caches.kept_cache import compress
    from headwise.evaluation.ablation import ablation_curve
    from headwise.heads.errors import HeadwiseError
    from headwise.heads.headfile import load_heads, save_heads
    from headwise.heads.types import HeadId, HeadScores, HeadSet
    from headwise.models.load import load
    from headwise.models.model import Model
    from headwise.prompts.prompt import Prompt, Span

__version__ = "0.1.0"
__all__ = [
    "HeadId",
    "HeadScores",
    "HeadSet",
    "HeadwiseError",
    "Model",
    "Prompt",
    "Span",
    "__version__",
    "ablate",
    "ablation_curve",
    "compress",
    "head_means",
    "load",
    "load_heads",
    "observe",
    "save_heads",
    "steer",
]

_HOMES = {
    "HeadId": "headwise.heads.types",
    "HeadScores": "headwise.heads.types",
    "HeadSet": "headwise.heads.types",
    "HeadwiseError": "headwise.heads.errors",
    "Model": "headwise.models.model",
    "Prompt": "headwise.prompts.prompt",
    "Span": "headwise.prompts.prompt",
    "ablate": "headwise.attention.ablate",
    "ablation_curve": "headwise.evaluation.ablation",
    "compress": "headwise.caches.kept_cache",
    "head_means": "headwise.attention.means",
    "load_heads": "headwise.heads.headfile",
    "load": "headwise.models.load",
    "observe": "headwise.attention.observe",
    "save_heads": "headwise.heads.headfile",
    "steer": "headwise.attention.steer",
}

if not TYPE_CHECKING:  # a type checker must see that a name does not exist
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
