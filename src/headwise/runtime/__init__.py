"""Running prompts: shared prefixes, greedy answers from drafts, run directories."""

from headwise.runtime.answer import Answer, answer_variants, draft_answer, verify_draft
from headwise.runtime.greedy import decode_one, decode_rows
from headwise.runtime.rundir import RunDirectory
from headwise.runtime.runner import Leaf, leaves, prefill
from headwise.runtime.traced import TracedAnswer, traced_answer

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
