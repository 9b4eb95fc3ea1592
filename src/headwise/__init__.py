"""headwise: find, test and use retrieval heads, the attention heads that carry information from a long context into the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise.lazy import lazy_names

if TYPE_CHECKING:
    from headwise.attention.ablate import ablate
    from headwise.attention.means import head_means, head_samples
    from headwise.attention.observe import observe
    from headwise.attention.steer import steer
    from headwise.caches.kept_cache import compress
    from headwise.evaluation.ablation import ablation_curve
    from headwise.heads.errors import HeadwiseError
    from headwise.heads.headfile import load_heads, save_heads
    from headwise.heads.types import HeadId, HeadScores, HeadSet
    from headwise.methods.adakv.press import AdaKV
    from headwise.methods.compresskv.options import Semantic
    from headwise.methods.compresskv.press import CompressKV
    from headwise.methods.copy.options import Copy
    from headwise.methods.duo.options import Gates
    from headwise.methods.duo.press import DuoAttention
    from headwise.methods.headkv.press import HeadKV
    from headwise.methods.influence.options import Proxy
    from headwise.methods.pyramidkv.press import PyramidKV
    from headwise.methods.query.options import Query
    from headwise.methods.query.ranker import Ranker
    from headwise.methods.snapkv.press import SnapKV
    from headwise.methods.streamingllm.press import StreamingLLM
    from headwise.methods.zigzag.press import ZigzagAttention
    from headwise.models.load import load
    from headwise.models.model import Model
    from headwise.prompts.prompt import Prompt, Span
    from headwise.runtime.detector import find

__version__ = "0.1.0"
__all__ = [
    "AdaKV",
    "CompressKV",
    "Copy",
    "DuoAttention",
    "Gates",
    "HeadId",
    "HeadKV",
    "HeadScores",
    "HeadSet",
    "HeadwiseError",
    "Model",
    "Prompt",
    "Proxy",
    "PyramidKV",
    "Query",
    "Ranker",
    "Semantic",
    "SnapKV",
    "Span",
    "StreamingLLM",
    "ZigzagAttention",
    "__version__",
    "ablate",
    "ablation_curve",
    "compress",
    "find",
    "head_means",
    "head_samples",
    "load",
    "load_heads",
    "observe",
    "save_heads",
    "steer",
]

_HOMES = {
    "find": "headwise.runtime.detector",
    "Semantic": "headwise.methods.compresskv.options",
    "Query": "headwise.methods.query.options",
    "Proxy": "headwise.methods.influence.options",
    "Gates": "headwise.methods.duo.options",
    "Copy": "headwise.methods.copy.options",
    "AdaKV": "headwise.methods.adakv.press",
    "CompressKV": "headwise.methods.compresskv.press",
    "DuoAttention": "headwise.methods.duo.press",
    "HeadId": "headwise.heads.types",
    "HeadKV": "headwise.methods.headkv.press",
    "HeadScores": "headwise.heads.types",
    "HeadSet": "headwise.heads.types",
    "HeadwiseError": "headwise.heads.errors",
    "Model": "headwise.models.model",
    "Prompt": "headwise.prompts.prompt",
    "PyramidKV": "headwise.methods.pyramidkv.press",
    "Ranker": "headwise.methods.query.ranker",
    "SnapKV": "headwise.methods.snapkv.press",
    "Span": "headwise.prompts.prompt",
    "StreamingLLM": "headwise.methods.streamingllm.press",
    "ZigzagAttention": "headwise.methods.zigzag.press",
    "ablate": "headwise.attention.ablate",
    "ablation_curve": "headwise.evaluation.ablation",
    "compress": "headwise.caches.kept_cache",
    "head_means": "headwise.attention.means",
    "head_samples": "headwise.attention.means",
    "load": "headwise.models.load",
    "load_heads": "headwise.heads.headfile",
    "observe": "headwise.attention.observe",
    "save_heads": "headwise.heads.headfile",
    "steer": "headwise.attention.steer",
}

if not TYPE_CHECKING:  # a type checker must see that a name does not exist
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
