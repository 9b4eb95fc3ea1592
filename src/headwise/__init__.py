"""headwise: find, test and use retrieval heads, the attention heads that carry information from a long context into the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise.lazy import lazy_names

if TYPE_CHECKING:
    from headwise.attention.ablate import ablate
    from headwise.attention.attribute import attribute
    from headwise.attention.copying import force_copy
    from headwise.attention.hide import hide
    from headwise.attention.means import head_means, head_samples
    from headwise.attention.observe import observe
    from headwise.attention.patch import patch
    from headwise.attention.scale import scale
    from headwise.attention.steer import steer
    from headwise.attention.vectors import HeadVectors, insert, record
    from headwise.caches.kept_cache import compress
    from headwise.caches.sparse_cache import sparse_decode
    from headwise.evaluation.ablation import ablation_curve
    from headwise.evaluation.challenged import measure_doubt
    from headwise.evaluation.conflict import conflict_curves
    from headwise.heads.errors import HeadwiseError
    from headwise.heads.headfile import load_heads, save_heads
    from headwise.heads.types import HeadId, HeadScores, HeadSet
    from headwise.methods.adakv.press import AdaKV
    from headwise.methods.atlas.options import InContext, Parametric, Retrieval, Task
    from headwise.methods.compresskv.options import Semantic
    from headwise.methods.compresskv.press import CompressKV
    from headwise.methods.copy.options import Copy
    from headwise.methods.doubt.calm import calm
    from headwise.methods.doubt.options import Doubt
    from headwise.methods.duo.options import Gates
    from headwise.methods.duo.press import DuoAttention
    from headwise.methods.headkv.press import HeadKV
    from headwise.methods.influence.options import Proxy
    from headwise.methods.mudaf.options import Mdqa
    from headwise.methods.pyramidkv.press import PyramidKV
    from headwise.methods.query.options import Query
    from headwise.methods.query.ranker import Ranker
    from headwise.methods.snapkv.press import SnapKV
    from headwise.methods.streamingllm.press import StreamingLLM
    from headwise.methods.trace.answer import trace, trace_answer
    from headwise.methods.vectors.extract import extract_vectors, function_vectors
    from headwise.methods.vectors.file import load_vectors, save_vectors
    from headwise.methods.zigzag.press import ZigzagAttention
    from headwise.models.load import load
    from headwise.models.model import Model
    from headwise.prompts.knowledge import KnowledgeRecord, read_knowledge
    from headwise.prompts.prompt import Prompt, Span
    from headwise.runtime.branches import Without
    from headwise.runtime.contrast import ContrastProcessor, contrastive_generate
    from headwise.runtime.detector import find
    from headwise.runtime.doubt_questions import DoubtQuestions
    from headwise.runtime.head_probe import load_probe

__version__ = "0.1.0"
__all__ = [
    "AdaKV",
    "CompressKV",
    "ContrastProcessor",
    "Copy",
    "Doubt",
    "DoubtQuestions",
    "DuoAttention",
    "Gates",
    "HeadId",
    "HeadKV",
    "HeadScores",
    "HeadSet",
    "HeadVectors",
    "HeadwiseError",
    "InContext",
    "KnowledgeRecord",
    "Mdqa",
    "Model",
    "Parametric",
    "Prompt",
    "Proxy",
    "PyramidKV",
    "Query",
    "Ranker",
    "Retrieval",
    "Semantic",
    "SnapKV",
    "Span",
    "StreamingLLM",
    "Task",
    "Without",
    "ZigzagAttention",
    "__version__",
    "ablate",
    "ablation_curve",
    "attribute",
    "calm",
    "compress",
    "conflict_curves",
    "contrastive_generate",
    "extract_vectors",
    "find",
    "force_copy",
    "function_vectors",
    "head_means",
    "head_samples",
    "hide",
    "insert",
    "load",
    "load_heads",
    "load_probe",
    "load_vectors",
    "measure_doubt",
    "observe",
    "patch",
    "read_knowledge",
    "record",
    "save_heads",
    "save_vectors",
    "scale",
    "sparse_decode",
    "steer",
    "trace",
    "trace_answer",
]

_HOMES = {
    "AdaKV": "headwise.methods.adakv.press",
    "CompressKV": "headwise.methods.compresskv.press",
    "ContrastProcessor": "headwise.runtime.contrast",
    "Copy": "headwise.methods.copy.options",
    "Doubt": "headwise.methods.doubt.options",
    "DoubtQuestions": "headwise.runtime.doubt_questions",
    "DuoAttention": "headwise.methods.duo.press",
    "Gates": "headwise.methods.duo.options",
    "HeadId": "headwise.heads.types",
    "HeadKV": "headwise.methods.headkv.press",
    "HeadScores": "headwise.heads.types",
    "HeadSet": "headwise.heads.types",
    "HeadVectors": "headwise.attention.vectors",
    "HeadwiseError": "headwise.heads.errors",
    "InContext": "headwise.methods.atlas.options",
    "KnowledgeRecord": "headwise.prompts.knowledge",
    "Mdqa": "headwise.methods.mudaf.options",
    "Model": "headwise.models.model",
    "Parametric": "headwise.methods.atlas.options",
    "Prompt": "headwise.prompts.prompt",
    "Proxy": "headwise.methods.influence.options",
    "PyramidKV": "headwise.methods.pyramidkv.press",
    "Query": "headwise.methods.query.options",
    "Ranker": "headwise.methods.query.ranker",
    "Retrieval": "headwise.methods.atlas.options",
    "Semantic": "headwise.methods.compresskv.options",
    "SnapKV": "headwise.methods.snapkv.press",
    "Span": "headwise.prompts.prompt",
    "StreamingLLM": "headwise.methods.streamingllm.press",
    "Task": "headwise.methods.atlas.options",
    "Without": "headwise.runtime.branches",
    "ZigzagAttention": "headwise.methods.zigzag.press",
    "ablate": "headwise.attention.ablate",
    "ablation_curve": "headwise.evaluation.ablation",
    "attribute": "headwise.attention.attribute",
    "calm": "headwise.methods.doubt.calm",
    "compress": "headwise.caches.kept_cache",
    "conflict_curves": "headwise.evaluation.conflict",
    "contrastive_generate": "headwise.runtime.contrast",
    "extract_vectors": "headwise.methods.vectors.extract",
    "find": "headwise.runtime.detector",
    "force_copy": "headwise.attention.copying",
    "function_vectors": "headwise.methods.vectors.extract",
    "head_means": "headwise.attention.means",
    "head_samples": "headwise.attention.means",
    "hide": "headwise.attention.hide",
    "insert": "headwise.attention.vectors",
    "load": "headwise.models.load",
    "load_heads": "headwise.heads.headfile",
    "load_probe": "headwise.runtime.head_probe",
    "load_vectors": "headwise.methods.vectors.file",
    "measure_doubt": "headwise.evaluation.challenged",
    "observe": "headwise.attention.observe",
    "patch": "headwise.attention.patch",
    "read_knowledge": "headwise.prompts.knowledge",
    "record": "headwise.attention.vectors",
    "save_heads": "headwise.heads.headfile",
    "save_vectors": "headwise.methods.vectors.file",
    "scale": "headwise.attention.scale",
    "sparse_decode": "headwise.caches.sparse_cache",
    "steer": "headwise.attention.steer",
    "trace": "headwise.methods.trace.answer",
    "trace_answer": "headwise.methods.trace.answer",
}

if not TYPE_CHECKING:  # a type checker must see that a name does not exist
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
