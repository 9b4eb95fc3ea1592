"""Running prompts: shared prefixes, greedy answers from drafts, run directories."""

from headwise.engine.answer import Answer, answer_variants, decode, draft_answer, verify_draft
from headwise.engine.rundir import RunDirectory
from headwise.engine.runner import Leaf, leaves, prefill, total_cost
from headwise.engine.traced import TracedAnswer, traced_answer

__all__ = [
    "Answer",
    "Leaf",
    "RunDirectory",
    "TracedAnswer",
    "answer_variants",
    "decode",
    "draft_answer",
    "leaves",
    "prefill",
    "total_cost",
    "traced_answer",
    "verify_draft",
]
