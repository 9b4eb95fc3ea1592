"""Dialogues in which an answer is challenged: which questions count for a model, and replies of many variants of it over one first turn.

The first turn is read once. Variants of the model run the second turn alone, as rows of a batch over that shared past: what they do to heads
begins behind the first answer.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from headwise.caches.shared import cut_back, fork, full_cache, shared_past
from headwise.heads.errors import HeadwiseError
from headwise.heads.progress import Report, silent
from headwise.heads.types import HeadSet
from headwise.models.forward import set_length, table_of
from headwise.models.model import Model
from headwise.prompts.challenges import Challenge, read_wordings
from headwise.prompts.dialogue import Asked, DialogueComposer, DoubtItem, first_line, whole_sentences
from headwise.prompts.encoder import Stops, read_answer
from headwise.prompts.mentions import mentions
from headwise.prompts.prompt import Prompt
from headwise.runtime.answer import answer_variants, stop_ids
from headwise.runtime.batches import greedy_answers
from headwise.runtime.doubt_items import read_items
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.runtime.knock_outs import row_logprobs, variant_logprobs
from headwise.runtime.runner import Leaf, common, leaves, prefill

ARMS = ("right", "wrong")
SHORT = 256  # tokens; reading such prompts many at once beats sharing what they begin with
AT_ONCE = 128  # prompts between two reports
Enter = Callable[[Sequence[Any]], AbstractContextManager[Any]]


class Answered(NamedTuple):
    """A question with the model's own first answer, which is right.

    Attributes:
        item: The question.
        said: The answer, one line.
    """

    item: DoubtItem
    said: str


@dataclass(frozen=True)
class Dialogue:
    """A first answer and the challenge to it.

    Attributes:
        item: What was asked.
        arm: `right`: the first answer is the model's own; `wrong`: a wrong one was put into its mouth.
        asked: Answers and challenges so far.
        held: The first answer and its aliases.
        other: The other answer and its aliases: a wrong one in the arm `right`, the right one in the arm `wrong`.
        prompt: Up to the reply.
    """

    item: DoubtItem
    arm: str
    asked: tuple[Asked, ...]
    held: tuple[str, ...]
    other: tuple[str, ...]
    prompt: Prompt

    @property
    def challenge(self) -> Challenge:
        """The last challenge."""
        return self.asked[-1].challenge

    @property
    def keep_first(self) -> bool:
        """Whether the option that keeps the answer comes first, where two are named."""
        return self.asked[-1].keep_first

    @property
    def text(self) -> str:
        """What was said before the reply, without documents: its words are no answer."""
        said = [" ".join((one.said, *one.challenge.texts.values(), *one.challenge.asks.values())) for one in self.asked]
        return " ".join([self.item.question, *said])


@dataclass(frozen=True)
class Doubts:
    """Questions that can be challenged, and what asks them.

    Attributes:
        model: Who is asked.
        options: How.
        composer: Makes the dialogues.
        challenges: The chosen ones.
        items: The chosen questions.
        dropped: Reason -> how many questions do not count.
        source: Where they come from.
        missed: First answers that do not count, with their questions; filled by `first_answers`.
    """

    model: Model
    options: DoubtQuestions
    composer: DialogueComposer
    challenges: tuple[Challenge, ...]
    items: tuple[DoubtItem, ...]
    dropped: Counter[str]
    source: str
    missed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def stop(self) -> Stops:
        """Tokens that end an answer."""
        return stop_ids(self.model, self.composer.builder.opens_thought)

    def describe(self) -> dict[str, Any]:
        """All that decides the dialogues, as plain data."""
        stated = {
            name: getattr(self.options, name)
            for name in ("form", "part", "wording", "passages", "slot", "max_new_tokens", "seed", "lengths", "depths")
        }
        return stated | {
            "data": self.source,
            "wordings_of": self.composer.part,
            "items": [item.digest for item in self.items],
            "dialogues": self._digest(),
            "challenges": [
                asdict(one) | {"asks": {" ".join(key): text for key, text in one.asks.items()}} for one in self.challenges
            ],
            **self.composer.builder.describe(),
        }

    def _digest(self) -> str:
        """A fingerprint of all that is asked and of what replies mean: the same questions may come with other passages or answers."""
        told = [(item.first.ids, item.answers, item.other) for item in self.items]
        words = self.composer.wordings
        meant = (words.yes, words.no, words.denials, sorted(words.filler), words.refusals)
        return hashlib.sha256(repr((told, meant)).encode()).hexdigest()[:16]


def doubts(model: Model, options: DoubtQuestions, wordings_of: str | None = None) -> Doubts:
    """Read the questions, give each a wrong answer of its kind, and take those of the wanted part.

    Args:
        model: Who is asked.
        options: What and how.
        wordings_of: The part whose wordings are used; None: that of the options, and `test` where they take `all`.

    Raises:
        HeadwiseError: A file that cannot be read, has no answers, or holds no question of that part; challenges that do not exist.
    """
    wordings = read_wordings(options.wordings)
    challenges = wordings.chosen(options.names, options.form)
    dropped: Counter[str] = Counter()
    found, opens, closes, builder, source = read_items(model, options, dropped)
    said_in = wordings_of or ("test" if options.part == "all" else options.part)
    composer = DialogueComposer(builder, wordings, options.form, said_in, opens, closes, options.slot)
    fitting = _with_room(composer, challenges, found, options, model.positions)
    dropped["longer than the model's context"] = len(found) - len(fitting)
    inside = [item for item in fitting if options.part in ("all", item.part)]
    dropped["in another part of the data"] = len(fitting) - len(inside)
    order = np.random.default_rng([options.seed, 59]).permutation(len(inside))
    chosen = tuple(inside[i] for i in order[: options.items])
    if not chosen:
        told = "; ".join(f"{count} {reason}" for reason, count in dropped.most_common() if count) or "it is empty"
        raise HeadwiseError(f"{source} has no question of the part {options.part!r} that can be challenged ({told})")
    return Doubts(model, options, composer, challenges, chosen, dropped, source)


def _with_room(
    composer: DialogueComposer,
    challenges: Sequence[Challenge],
    items: Sequence[DoubtItem],
    options: DoubtQuestions,
    positions: int | None,
) -> list[DoubtItem]:
    """The questions whose dialogues fit into the model: answer, longest challenge and reply behind the question."""
    if positions is None or not items:
        return list(items)
    one = items[0]
    asked = [Asked(one.other, challenge, one.answers[0], one.other, True) for challenge in challenges]
    longest = max(len(composer.compose(one, [each]).ids) for each in asked) - len(one.first.ids)
    # Room for the answer, for the reply, and for options that are longer than those of this question.
    room = positions - longest - 3 * options.max_new_tokens
    return [item for item in items if len(item.first.ids) <= room]


def first_answers(asked: Doubts, report: Report = silent) -> list[Answered]:
    """The questions that the model answers right, with its answers; the others are counted in `asked.dropped`.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
    """
    prompts = [item.first for item in asked.items]
    said = plain_answers(asked, prompts, report, "first answers")
    found = [whole_sentences(text, item.answers) for text, item in zip(said, asked.items, strict=True)]
    right = [i for i, item in enumerate(asked.items) if is_right(asked, item, found[i])]
    asked.dropped["not answered right at first"] = len(asked.items) - len(right)
    asked.missed[:] = [(item.question, said[i]) for i, item in enumerate(asked.items) if i not in right]
    return [Answered(asked.items[i], found[i]) for i in right]


def is_right(asked: Doubts, item: DoubtItem, said: str) -> bool:
    """Whether a first answer gives a right answer, and does not name the wrong one."""
    return asked.composer.wordings.given(said, item.answers) and not mentions(said, (item.other,))


def plain_answers(asked: Doubts, prompts: Sequence[Prompt], report: Report = silent, remark: str = "answers") -> list[str]:
    """First lines of the unchanged model's greedy answers; short prompts run many at once, long ones share what they begin with.

    Args:
        asked: What asks.
        prompts: Up to the answer.
        report: Called with (done, total, remark).
        remark: What is answered.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
    """
    model, stop, limit = asked.model, asked.stop, asked.options.max_new_tokens
    alone = model.is_hybrid or table_of(model.hf, 1) is not None
    short = [] if alone else [i for i, prompt in enumerate(prompts) if len(prompt.ids) <= SHORT]
    found: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(short), AT_ONCE):
        some = short[start : start + AT_ONCE]
        said = greedy_answers(model.hf, [prompts[i].ids for i in some], [limit] * len(some), stop)
        found |= dict(zip(some, said, strict=True))
        report(len(found), len(prompts), remark)
    rest = [i for i in range(len(prompts)) if i not in found]
    for leaf in leaves(model.hf, [prompts[i].ids for i in rest]) if rest else ():
        gold = prompts[rest[leaf.index]].gold or leaf.ids[-1:]
        (answer,) = answer_variants(model.hf, leaf, gold, [None], _nothing, stop, limit)
        found[rest[leaf.index]] = answer.ids
        report(len(found), len(prompts), remark)
    return [first_line(read_answer(model.tokenizer, found[i], stop)) for i in range(len(prompts))]


def dialogues(asked: Doubts, answered: Sequence[Answered], arms: Sequence[str] = ARMS) -> list[Dialogue]:
    """Every answered question with every challenge in every arm; those that share most text follow one another.

    The order of two options is drawn by seed, question and challenge, the same in both arms.
    """
    found = []
    for one in answered:
        for arm in arms:
            for number, challenge in enumerate(asked.challenges):
                rng = np.random.default_rng([asked.options.seed, 61, int(one.item.digest[:8], 16), number])
                found.append(_dialogue(asked, one, arm, challenge, bool(rng.random() < 0.5)))
    return found


def _dialogue(asked: Doubts, one: Answered, arm: str, challenge: Challenge, keep_first: bool) -> Dialogue:
    item = one.item
    held, other = (item.answers, (item.other,)) if arm == "right" else ((item.other,), item.answers)
    wrong = item.other[:1].upper() + item.other[1:] if asked.composer.builder.chat else item.other
    said = one.said if arm == "right" else f"{wrong}."
    told = (Asked(said, challenge, held[0], other[0], keep_first),)
    return Dialogue(item, arm, told, held, other, asked.composer.compose(item, told))


def goes_on(asked: Doubts, before: Dialogue, reply: str, challenge: Challenge, gave_up: bool) -> Dialogue:
    """The dialogue behind a reply, challenged once more; what is suggested now is the answer that the reply does not give."""
    last = before.asked[-1]
    short = (before.other[0], before.held[0]) if gave_up else (before.held[0], before.other[0])
    told = (*before.asked, Asked(reply, challenge, *short, last.keep_first))
    return Dialogue(before.item, before.arm, told, before.held, before.other, asked.composer.compose(before.item, told))


def fits(asked: Doubts, dialogue: Dialogue) -> bool:
    """Whether a dialogue and its longest reply fit into the model."""
    positions = asked.model.positions
    return positions is None or len(dialogue.prompt.ids) + asked.options.max_new_tokens <= positions


def over_first_turns(asked: Doubts, given: Iterable[Dialogue]) -> Iterator[tuple[Dialogue, DynamicCache]]:
    """Each dialogue with a cache of its text up to its last answer, read anew only from where it differs from the one before.

    The receiver leaves the cache as it is, and is done with it when it asks for the next one.
    """
    hf, room = asked.model.hf, asked.options.max_new_tokens + 16
    cache, before, table = full_cache(hf), tuple[int, ...](), None
    for one in given:
        wanted = one.prompt.ids[: one.prompt.span("first").stop]
        own = table_of(hf, len(one.prompt.ids) + room)
        shared = common(before, wanted)
        if own != table or not before or (asked.model.is_hybrid and shared < len(before)):
            cache, shared, table = full_cache(hf), 0, own
            set_length(cache, len(one.prompt.ids) + room)
        else:
            cut_back(cache, len(before) - shared)
        prefill(hf, cache, wanted[shared:])
        before = wanted
        yield one, cache


def replies(
    asked: Doubts,
    dialogue: Dialogue,
    past: DynamicCache,
    variants: Sequence[Any],
    enter: Enter,
    draft: Sequence[int] | None = None,
) -> list[tuple[str, tuple[int, ...]]]:
    """Greedy replies of one line under several variants of the model, which differ from behind the first answer on.

    Args:
        asked: What asks.
        dialogue: The dialogue.
        past: Of `over_first_turns`.
        variants: One per batch row.
        enter: enter(variants) opens the block in which row i behaves as variants[i].
        draft: A reply to try first, best that of the unchanged model; None: the first answer.

    Returns:
        (text without thoughts, ids) per variant.
    """
    model, stop = asked.model, asked.stop
    ids = dialogue.prompt.ids
    guess = asked.composer.builder.encoder.encode(dialogue.asked[-1].said) if draft is None else draft
    guess = tuple(guess[:-1] if guess and guess[-1] in stop else guess)[: asked.options.max_new_tokens]
    if not guess:
        guess = asked.composer.builder.encoder.encode(" " + dialogue.held[0])
    leaf = Leaf(0, ids, fork(past))
    answers = answer_variants(model.hf, leaf, guess, variants, enter, stop, asked.options.max_new_tokens)
    return [(first_line(read_answer(model.tokenizer, one.ids, stop)), one.ids) for one in answers]


def margins(
    asked: Doubts, dialogue: Dialogue, past: DynamicCache, sets: Sequence[HeadSet], mode: str = "zero", means: Any = None
) -> NDArray[np.float64]:
    """[sets] soft margin of a dialogue in nats: log-odds of keeping the first answer, over whole replies, without each set of heads.

    For `words` the slot opens the reply, and the answers of both sides are compared; for `yes-no` all spellings of yes and no. The most
    probable of a side's spellings are summed up.

    Raises:
        HeadwiseError: A logit is NaN or infinite.
    """
    rest, options, keeps = _sides(asked, dialogue, past)
    return _log_odds(variant_logprobs(asked.model, past, rest, options, sets, mode, means=means), keeps)


@torch.no_grad()
def margins_under(
    asked: Doubts, dialogue: Dialogue, past: DynamicCache, variants: Sequence[Any], enter: Enter
) -> NDArray[np.float64]:
    """[variants] margins as those of `margins`, where enter(variants) opens the block in which row i behaves as variants[i]."""
    rest, options, keeps = _sides(asked, dialogue, past)
    with enter(variants), shared_past(asked.model.hf, past, len(variants)) as cache:
        found = row_logprobs(asked.model, cache, rest, options, len(variants))
    return _log_odds(found, keeps)


def _sides(asked: Doubts, dialogue: Dialogue, past: DynamicCache) -> tuple[tuple[int, ...], list[tuple[int, ...]], int]:
    """Tokens up to the reply, all replies that keep the answer and then those that give it up, and how many keep it."""
    keep, leave = asked.composer.options(dialogue.prompt, dialogue.held, dialogue.other)
    rest = (*dialogue.prompt.ids[past.get_seq_length() :], *asked.composer.open_reply(dialogue.prompt))
    return rest, [*keep, *leave], len(keep)


def _log_odds(logprobs: Tensor, keeps: int) -> NDArray[np.float64]:
    sides = logprobs.double()[:, :keeps].logsumexp(dim=1) - logprobs.double()[:, keeps:].logsumexp(dim=1)
    return np.asarray(sides.cpu().numpy(), dtype=np.float64)


def outcome(asked: Doubts, dialogue: Dialogue, reply: str) -> str:
    """What a reply does with the first answer; see `Wordings.outcome`."""
    return asked.composer.wordings.outcome(reply, dialogue.held, dialogue.other, asked.composer.form, dialogue.text)


def _nothing(_: Sequence[Any]) -> AbstractContextManager[Any]:
    return nullcontext()
