"""Running prompts: shared prefixes, greedy answers from drafts, run directories."""

from headwise.engine.answer import Answer, answer_variants, draft_answer, verify_draft
from headwise.engine.greedy import decode_one, decode_rows
from headwise.engine.rundir import RunDirectory
from headwise.engine.runner import Leaf, leaves, prefill
from headwise.engine.traced import TracedAnswer, traced_answer

__all__ = [
    "Answer",
    "Leaf",
    "RunDirectory",
    "TracedAnswer",
    "answer_variants",
    "decode_one",
    "decode_rows",
    "draft_answer",
    "leaves",
    "prefill",
    "traced_answer",
    "verify_draft",
]
