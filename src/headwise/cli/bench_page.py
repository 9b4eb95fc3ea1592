"""What the page of `headwise bench cache` shows beside the measurement: which tokens of one prompt each method keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwise.evaluation.compression import Candidate
    from headwise.evaluation.contexts import Context
    from headwise.models.model import Model


def write_cache_page(
    path: Path, result: Mapping[str, Any], loaded: Model, candidates: Sequence[Candidate], context: Context, protocol: str
) -> None:
    """Write the page. Every method is shown with its first budget, on the first context (with its first question, if that is inside)."""
    from headwise.report.compression_page import write_page

    write_page(result, _example(loaded, candidates, context, protocol), path)


def _example(loaded: Model, candidates: Sequence[Candidate], context: Context, protocol: str) -> dict[str, Any]:
    import torch

    from headwise.attention.plan import attached
    from headwise.caches.kept_cache import KeptCache
    from headwise.evaluation.contexts import answer_spans
    from headwise.models.forward import token_tensor
    from headwise.prompts.prompt import Prompt
    from headwise.runtime.head_trace import text_pieces

    asked = context.questions[:1] if protocol == "inside" else context.questions
    ids = context.ids + asked[0].rest if protocol == "inside" else context.ids
    spans = answer_spans(asked)
    prompt = Prompt(ids, spans)
    known = all(question.places for question in asked)
    candidates = [candidate for candidate in candidates if known or not candidate.told]
    first = {candidate.name: candidate for candidate in reversed(candidates) if candidate is not candidates[0]}
    methods = []
    with attached(loaded.hf), torch.no_grad():
        for candidate in (candidate for candidate in candidates if first.get(candidate.name) is candidate):
            cache = KeptCache(loaded.hf, candidate.for_prompt(prompt))
            cache.prefill(token_tensor(loaded.hf, ids))
            held = [head for heads in cache.held_positions().values() for head in heads]
            counts = torch.stack([torch.bincount(head.cpu(), minlength=len(ids)) for head in held]).clamp(max=1).float()
            methods.append({"method": candidate.name, "budget": candidate.budget, "kept": counts.mean(dim=0).tolist()})
    pieces = text_pieces(loaded.tokenizer, ids)
    answers = [[span.start, span.stop] for span in spans.values()]
    return {"task": context.task, "question": protocol, "pieces": list(pieces), "answers": answers, "methods": methods}
