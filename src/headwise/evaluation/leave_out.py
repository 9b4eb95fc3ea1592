"""What a passage is worth: how much less likely an answer becomes when the passage is taken out of the prompt (leave one out)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headwise.attention.plan import attached
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.models.model import Model
from headwise.prompts.prompt import Prompt, Span
from headwise.runtime.answer import verify_draft
from headwise.runtime.runner import leaves


def without(prompt: Prompt, names: Iterable[str]) -> Prompt:
    """The prompt without the tokens of some spans; what lies around them, tags and line breaks of the others, stays as it is.

    Args:
        prompt: The prompt.
        names: Spans that do not overlap; they go, and so does every span that loses all of its tokens.

    Raises:
        PromptError: There is no such span, or nothing would be left.
    """
    gone = [False] * len(prompt.ids)
    for name in names:
        start, stop = prompt.span(name)
        gone[start:stop] = [True] * (stop - start)
    before = [0]  # tokens that are left in front of each position
    for taken in gone:
        before.append(before[-1] + (not taken))
    moved = {name: Span(before[span.start], before[span.stop]) for name, span in prompt.spans.items()}
    ids = tuple(token for token, taken in zip(prompt.ids, gone, strict=True) if not taken)
    return Prompt(ids, {name: span for name, span in moved.items() if span.length}, prompt.gold)


def answer_logprobs(model: Model, prompts: Sequence[Prompt], answer: Sequence[int], report: Report = silent) -> list[float]:
    """Log-probability of one answer behind each of several prompts; text that prompts share in front is read once.

    Args:
        model: The model.
        prompts: The prompts.
        answer: The answer's tokens.
        report: `report(done, total, remark)`; progress in prompts.

    Returns:
        Natural logarithms, at most 0, in the order of the prompts.

    Raises:
        HeadwiseError: An empty answer, or a logit that is NaN or infinite.
    """
    if not answer:
        raise HeadwiseError("the answer is empty, so it has no probability")
    found = [0.0] * len(prompts)
    with attached(model):
        for done, leaf in enumerate(leaves(model.hf, [prompt.ids for prompt in prompts]), 1):
            found[leaf.index] = float(verify_draft(model.hf, leaf.past, leaf.rest, answer).logprob[0])
            report(done, len(prompts), "prompts")
    return found


def leave_one_out(
    model: Model, prompt: Prompt, answer: Sequence[int], names: Sequence[str], report: Report = silent
) -> dict[str, float]:
    """How much each span causes an answer: by how many nats the answer's log-probability falls when the span is left out.

    Args:
        model: The model.
        prompt: The prompt.
        answer: The answer's tokens.
        names: Spans of the prompt, such as its passages.
        report: As for `answer_logprobs`.

    Returns:
        Name -> drop, positive where the span makes the answer more likely; in the order of `names`.

    Raises:
        HeadwiseError: As `without` and `answer_logprobs`.
    """
    whole, *rest = answer_logprobs(model, [prompt, *(without(prompt, [name]) for name in names)], answer, report)
    return {name: whole - left for name, left in zip(names, rest, strict=True)}
