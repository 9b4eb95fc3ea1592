"""Control tokens in front of a prompt: which of two ways a model is to answer (RHIO, Huang et al. 2025, arXiv:2501.13573, section 3.2 of our card).

The token stands right in front of what a user says: behind a BOS token and whatever a chat template puts there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwise.heads.errors import HeadwiseError, PromptError
from headwise.prompts.prompt import Prompt, PromptBuilder, Span

FAITHFUL, UNFAITHFUL = "[POS]", "[NEG]"
CONTROL = (FAITHFUL, UNFAITHFUL)


def control_ids(tokenizer: Any) -> tuple[int, int]:
    """Ids of the tokens for faithful and unfaithful answers.

    Raises:
        HeadwiseError: The tokenizer lacks them.
    """
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in CONTROL if token not in vocabulary]:
        raise HeadwiseError(f"the tokenizer has no control token {missing[0]}; use a model that headwise train rhio has made, with its tokenizer")
    return vocabulary[FAITHFUL], vocabulary[UNFAITHFUL]


def with_control(prompt: Prompt, token: int, head: Sequence[int]) -> Prompt:
    """The prompt with a control token in front of what the user says; spans move with their words.

    Args:
        prompt: Without a control token.
        token: Its id.
        head: Ids that tokenizer and chat template put in front (`PromptBuilder.head`). The prompt begins with them, but for a last space that became
            part of its first word.
    """
    place = 0
    while place < min(len(head), len(prompt.ids)) and prompt.ids[place] == head[place]:
        place += 1
    spans = {
        name: Span(span.start + (span.start >= place), span.stop + (span.stop > place)) for name, span in prompt.spans.items()
    }
    return Prompt((*prompt.ids[:place], token, *prompt.ids[place:]), spans, prompt.gold)


def check_control(builder: PromptBuilder) -> None:
    """Refuse a chat template that takes control tokens away: whoever writes `[POS]` in front of a question would ask without it.

    Args:
        builder: Of the prompts; without a chat template everything is well.

    Raises:
        HeadwiseError: The tokenizer lacks the tokens.
        PromptError: The template strips one.
    """
    tokenizer: Any = builder.encoder.tokenizer
    ids = control_ids(tokenizer)
    if not builder.chat:
        return
    for text, token in zip(CONTROL, ids, strict=True):
        said = [{"role": "user", "content": f"{text} a"}]
        rendered = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True, **builder.chat_args)
        if token not in tokenizer.encode(str(rendered), add_special_tokens=False):
            raise PromptError(f"the chat template strips the control token {text} from what a user says; leave --chat out, or mend the template")
