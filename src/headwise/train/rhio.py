"""Examples of RHIO's faithfulness-aware tuning (arXiv:2501.13573, section 3.2 of our card).

    loss = - E log p(faithful answer | [POS] question, documents) - E log p(unfaithful answer | [NEG] question, documents)

Both kinds stand in one set that is shuffled; `AnswerLoss` weighs every answer alike. A model learns to trust documents by it, wrong ones included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from headwise.heads.errors import HeadwiseError, PromptError
from headwise.methods.rhio.file import PairRow
from headwise.models.model import Model
from headwise.prompts.answers import answer_ids, passages_of
from headwise.prompts.control import check_control, control_ids, with_control
from headwise.prompts.grounded import GroundedRecord
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.prompt import Prompt, Span
from headwise.train.examples import Prepared, TrainExample, answer_end


def control_examples(model: Model, rows: Sequence[PairRow], composer: GroundedComposer, length: int, plain: bool = False) -> Prepared:
    """Two examples of each pair: the faithful answer behind `[POS]` and the unfaithful one behind `[NEG]`.

    Nothing is cut: a pair is left out where one of its examples is too long.

    Args:
        model: Of `with_control_tokens`; for `plain` any model.
        rows: Pairs of answers; for `plain` the unfaithful one may be empty.
        composer: Of the prompts, with the tokenizer of `model`.
        length: Longest example in tokens.
        plain: The control run: the faithful answers alone, without tokens, of the same pairs.

    Returns:
        Examples; counts `too_long` and `cannot_follow` (an answer that cannot be encoded behind its prompt), in pairs.

    Raises:
        HeadwiseError: No pair can be used, the tokenizer has no end-of-text token or no control tokens, or the chat template strips these.
    """
    end, tokens = answer_end(composer.encoder, composer.chat), () if plain else control_ids(model.tokenizer)
    if not plain:
        check_control(composer.builder)
    counts = Counter({"too_long": 0, "cannot_follow": 0})
    found: list[TrainExample] = []
    for row in rows:
        prompt = composer.opened(GroundedRecord(row.question, row.documents, name=row.name))
        try:
            answers = [answer_ids(composer.encoder, prompt, text) for text in _texts(row, plain)]
        except PromptError:
            counts["cannot_follow"] += 1
            continue
        # The control token counts in plain training, too, so that both runs have the same pairs.
        if len(prompt.ids) + 1 + max(map(len, answers)) + len(end) > length:
            counts["too_long"] += 1
            continue
        prompts = [prompt] if plain else [with_control(prompt, token, composer.builder.head) for token in tokens]
        found += [_example(asked, (*answer, *end), row.name) for asked, answer in zip(prompts, answers, strict=False)]
    if not found:
        raise HeadwiseError(f"none of {len(rows)} pairs can be trained on (too long: {counts['too_long']}); allow longer examples")
    return Prepared(tuple(found), dict(counts))


def _texts(row: PairRow, plain: bool) -> tuple[str, ...]:
    """The answers of a pair; plain training looks at the unfaithful one too, where there is one, so that it leaves out the same pairs."""
    return (row.faithful,) if plain and not row.unfaithful else (row.faithful, row.unfaithful)


def _example(prompt: Prompt, answer: tuple[int, ...], name: str) -> TrainExample:
    count = len(prompt.ids)
    return TrainExample((*prompt.ids, *answer), count, Span(prompt.span("query").start, count), tuple(passages_of(prompt).values()), name=name)
