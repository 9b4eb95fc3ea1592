"""Dialogues: which part a question lies in, wrong answers, first turns that stay as they are under chat templates, and both orders of options."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from headwise.heads import HeadwiseError, PromptError
from headwise.models.model import Model
from headwise.prompts.challenges import PARTS, read_wordings
from headwise.prompts.dialogue import SHARES, Asked, DialogueComposer, DoubtItem, question_key, wrong_answers
from headwise.prompts.encoder import PieceEncoder, Stops, read_answer
from headwise.prompts.knowledge import KnowledgeComposer, KnowledgeRecord, read_knowledge
from headwise.prompts.mentions import mentions
from headwise.prompts.passages import Passage
from headwise.prompts.prompt import Piece, Prompt, Turn
from headwise.prompts.swaps import answer_kind
from headwise.runtime.doubt_asked import ARMS, Answered, dialogues, doubts, first_line, goes_on
from headwise.runtime.doubt_questions import DoubtQuestions
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.unit.test_chat import LOOP, MOVING, OPEN, TEMPLATES, official, tokenizer_with

DATA = Path(__file__).parents[1] / "data" / "knowledge"
OURS = read_wordings()


@pytest.fixture(scope="module")
def model():
    return Model(tiny_model("llama", max_position_embeddings=4096), character_tokenizer())


def item_named(key):
    return DoubtItem(key, key, "?", ("a",), "b", (Turn("user", (Piece("?"),)),), Prompt((1,)))


# ---- parts


def test_the_part_is_decided_by_what_is_asked_alone():
    found = Counter(item_named(f"question {i}").part for i in range(2000))
    assert set(found) == set(PARTS)
    for part, share in zip(PARTS, SHARES, strict=True):
        assert abs(found[part] / 2000 - share) < 0.04


def test_the_part_of_a_question_stays_what_it_is():
    """Whoever scored heads on one part last year must not find its questions in another today."""
    assert [item_named(f"question {i}").part for i in range(8)] == PARTS_OF_TODAY


def test_a_question_mark_or_a_space_makes_no_other_question(model):
    """The prompt is the same, so it must not be in two parts of the data."""
    written = ["What is the capital of France", "What is the capital of France?", "what is the capital  of France ?"]
    items = [asked_of(model, [record(one, "Paris", wrong="Lyon")], "all").items[0] for one in written]
    assert len({item.digest for item in items}) == 1
    asked = asked_of(model, [record(one, "Paris", wrong="Lyon") for one in written], "all")
    assert asked.dropped["asked before"] == 2
    assert question_key("Is it？", "", "a") == question_key("Is it", "", "a")
    assert question_key("Is it?", "", "a") != question_key("Is it!", "", "a")


def test_a_wrong_answer_that_is_an_alias_in_other_letters_is_dropped(model):
    given = [
        KnowledgeRecord("Which city", ("NYC", "New York City"), wrong="New York"),
        KnowledgeRecord("Which state", ("America", "USA"), wrong="usa"),
        KnowledgeRecord("Which land", ("America", "US"), wrong="U.S."),
        KnowledgeRecord("How many", ("7,731",), wrong="7731"),
        KnowledgeRecord("Which sign", ("+",), wrong="-"),
        KnowledgeRecord("Which town", ("Ulm",), wrong=" "),  # no wrong answer at all
    ]
    asked = asked_of(model, given, "all")
    assert asked.dropped["whose wrong answer is right"] == 4
    assert {item.question for item in asked.items} == {"Which sign", "Which town"}
    assert all(item.other.strip() for item in asked.items)


def test_the_wordings_may_be_those_of_another_part(model):
    asked = doubts(model, DoubtQuestions(CITIES, part="all"), "select")
    assert asked.composer.part == asked.describe()["wordings_of"] == "select"
    assert len(asked.items) == len(asked_of(model, CITIES, "all").items)


PARTS_OF_TODAY = ["detect", "detect", "test", "test", "select", "select", "test", "test"]


def asked_of(model, data, part, seed=0, **more):
    return doubts(model, DoubtQuestions(data, part=part, seed=seed, items=10_000, **more))


def test_parts_are_disjoint_and_stable_under_order_and_seed(model):
    records = [one for name in ("popqa.json", "relations.jsonl") for one in read_knowledge(DATA / name)]
    parts = {part: {item.digest for item in asked_of(model, records, part).items} for part in PARTS}
    assert all(parts.values())
    assert not any(parts[a] & parts[b] for a in PARTS for b in PARTS if a != b)
    assert {item.digest for item in asked_of(model, records, "all").items} == set().union(*parts.values())
    for part in PARTS:
        turned = asked_of(model, records[::-1], part, seed=7)
        assert {item.digest for item in turned.items} <= parts[part]
        assert turned.composer.part == part
    assert asked_of(model, records, "all").composer.part == "test"


@pytest.mark.slow
def test_needles_of_one_sentence_lie_in_one_part(model):
    asked = doubts(model, DoubtQuestions(lengths=700, depths=2, part="all"))
    assert len({item.digest for item in asked.items}) * 2 == len(asked.items)
    parts = {}
    for item in asked.items:
        assert parts.setdefault(item.key, item.part) == item.part
        assert not mentions(item.other, item.answers)
        assert item.first.ids[slice(*item.first.span("needle"))]


# ---- questions that do not count


def record(question, *answers, **more):
    return KnowledgeRecord(question, answers, **more)


CITIES = [
    record(f"What is the capital of {land}", city) for land, city in (("France", "Paris"), ("Spain", "Madrid"), ("Italy", "Rome"))
]


def test_what_does_not_count_is_counted(model):
    given = [
        *CITIES,
        record("What is the capital of Peru", "Lima", wrong="lima city"),
        record("What is the capital of Chad", "New York", wrong="York"),
    ]
    asked = asked_of(model, given, "all")
    assert asked.dropped["whose wrong answer is right"] == 2
    assert len(asked.items) == 3
    shown = [record("What is the capital of France", "Paris", passage=Passage("Paris it is."), wrong="Lyon"), *CITIES]
    asked = asked_of(model, shown, "all", passages=True)
    assert asked.dropped["without a passage"] == 2  # France comes twice
    lone = doubts(model, DoubtQuestions([record("Who?", "Ada", wrong="Bob")], part="all"))
    assert [item.other for item in lone.items] == ["Bob"]
    with pytest.raises(
        HeadwiseError, match=r"no question of the part 'all' that can be challenged \(1 without a wrong answer of its kind"
    ):
        asked_of(model, [record("Who?", "Ada")], "all")


def test_a_question_that_comes_twice_is_asked_once_and_names_differ(model):
    """Results are kept by name, and the beginnings of long questions are alike."""
    long = "In which of the many old towns by the slow green river did the old king live"
    given = [record(f"{long} {when}", where) for when, where in (("first", "Ulm"), ("last", "Bonn"))]
    asked = asked_of(model, [*CITIES, *given, CITIES[0], given[1]], "all")
    assert asked.dropped["asked before"] == 2
    assert len(asked.items) == len({item.name for item in asked.items}) == 5
    assert sum(item.name.startswith(long[:60]) for item in asked.items) == 2


def test_a_prompt_that_leaves_no_room_for_the_dialogue_is_dropped():
    short = Model(tiny_model("llama"), character_tokenizer())  # 256 positions
    given = [record("Who " + "very " * 40, "Ada", wrong="Bob"), record("Who", "Eve", wrong="Bob")]
    asked = asked_of(short, given, "all", max_new_tokens=4, challenges="sure,suggestion")
    room = 256 - len(asked.items[0].first.ids)
    longest = max(len(one.prompt.ids) for one in dialogues(asked, [Answered(asked.items[0], "Eve")]))
    assert longest + len(" The answer is") + 4 <= 256 < longest + 40 * len("very ")
    assert room > 200
    assert asked.dropped["longer than the model's context"] == 1
    assert [item.answers for item in asked.items] == [("Eve",)]


# ---- wrong answers


def rows_of(records):
    return [(one.question, one.question, one.answers, one.kind, one.wrong) for one in records]


def test_wrong_answers_are_of_the_same_kind_and_never_right():
    records = read_knowledge(DATA / "popqa.json") + read_knowledge(DATA / "relations.jsonl")
    found = wrong_answers(rows_of(records), 3)
    assert found == wrong_answers(rows_of(records), 3)
    assert found != wrong_answers(rows_of(records), 4)
    kinds = {}
    for one in records:
        kinds.setdefault(one.kind or answer_kind(one.question, one.answers[0]), set()).add(one.answers[0])
    same = 0
    for one, other in zip(records, found, strict=True):
        assert other
        assert not any(mentions(other, (right,)) or mentions(right, (other,)) for right in one.answers)
        assert other.split()[0].casefold() not in {right.split()[0].casefold() for right in one.answers}
        assert not mentions(one.question, (other,))
        own = kinds[one.kind or answer_kind(one.question, one.answers[0])]
        same += other in own
        if other not in own:  # only where the kind has none that fits
            fitting = {right for right in own if not any(mentions(right, (a,)) or mentions(a, (right,)) for a in one.answers)}
            assert all(
                mentions(one.question, (right,)) or right.split()[0].casefold() in {a.split()[0].casefold() for a in one.answers}
                for right in fitting
            )
    assert 0 < same < len(records)


def test_a_given_wrong_answer_stays_and_an_alias_is_never_drawn():
    rows = [
        ("", "When was it", ("1874",), "", ""), ("", "When did it end", ("1901",), "", ""), ("", "Who", ("Ada", "Ada King"), "", ""),
        ("", "Who else", ("Ada King",), "", "Bob"), ("", "Who then", ("Eve",), "", ""),
    ]  # fmt: skip
    for seed in range(20):
        found = wrong_answers(rows, seed)
        assert found[:2] == ["1901", "1874"]
        assert found[2] == "Eve"
        assert found[3] == "Bob"
        assert found[4] in ("Ada", "Ada King")
    assert wrong_answers([("", "Who", ("Ada",), "", "")], 0) == [""]


# ---- first turns


CHATS = {
    name: TEMPLATES[name]
    for name in ("chatml", "chatml with a default system turn", "trimmed", "a system turn in the user's turn")
} | {
    "system in front": "{{ 'System: be brief.\\n' }}" + LOOP + OPEN,
    "bos as turn mark": LOOP.replace("<|im_start|>", "<s>") + OPEN.replace("<|im_start|>", "<s>"),
}
SECOND = "That is wrong, I think it is Lyon. What is your answer?"


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_without_bos", "unigram", "llama2_like", "characters"])
@pytest.mark.parametrize("template", [*CHATS, "moving", None])
def test_the_first_turn_is_the_beginning_of_the_dialogue(kind, template):
    """And with a chat template the ids are those of transformers for the conversation."""
    source = MOVING if template == "moving" else CHATS.get(template)
    tokenizer = tokenizer_with(kind, source)
    if source and ("bos_token" in source or "<s>" in source) and tokenizer.bos_token is None:
        pytest.skip("the template needs a BOS token")
    composer = KnowledgeComposer(PieceEncoder(tokenizer), chat=source is not None)
    one = record("What is the capital of France", "Paris", wrong="Lyon", passage=Passage("Paris is the capital of France."))
    for passage in (False, True):
        first = composer.opened(one) if passage else composer.closed(one)
        item = DoubtItem("x", "x", one.question, one.answers, "Lyon", tuple(composer.turns(one, passage)), first)
        (challenge,) = OURS.chosen(("suggestion",), "words")
        made = DialogueComposer(composer.builder, OURS, "words", "detect")
        told = Asked("Paris.", challenge, "Paris", "Lyon", True)
        prompt, longer = made.compose(item, [told]), made.compose(item, [told, told])
        start = len(first.ids)
        assert prompt.ids[:start] == first.ids
        assert prompt.span("first").start == start
        assert longer.ids[: prompt.span("challenge").stop] == prompt.ids[: prompt.span("challenge").stop]
        assert composer.builder.encoder.decode(prompt.ids[slice(*prompt.span("challenge"))]).strip() == SECOND
        if source is not None and not passage:
            said = [("user", "Question: What is the capital of France?"), ("assistant", "Paris."), ("user", SECOND)]
            assert prompt.ids == official(tokenizer, said)
            assert longer.ids == official(tokenizer, [*said, *said[1:]])


def test_thoughts_are_no_part_of_a_reply():
    tokenizer = tokenizer_with("characters", None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    stop = Stops.of(tokenizer, [1])
    ids = tokenizer.encode("<think>\nLyon? No.\n</think>\n\nParis it is.\nmore", add_special_tokens=False)
    reply = first_line(read_answer(tokenizer, ids, stop))
    assert reply == "Paris it is."
    assert OURS.outcome(reply, ("Paris",), ("Lyon",), "words") == "kept"
    never = tokenizer.encode("<think>\nParis", add_special_tokens=False)
    assert OURS.outcome(first_line(read_answer(tokenizer, never, stop)), ("Paris",), ("Lyon",), "words") == "incoherent"
    assert first_line("\n \n a \n b") == "a"
    assert first_line(" \n") == ""


def test_a_template_that_thinks_opens_the_reply_behind_the_thoughts():
    """Past turns hold no thoughts, so the dialogue goes on from the answer itself; what is scored stands behind the closed block."""
    template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    composer = KnowledgeComposer(PieceEncoder(tokenizer_with("characters", template)), chat=True)
    item = DoubtItem(
        "x", "x", "Who?", ("Ada",), "Bob", tuple(composer.turns(record("Who", "Ada"))), composer.closed(record("Who", "Ada"))
    )
    (challenge,) = OURS.chosen(("again",), "words")
    made = DialogueComposer(composer.builder, OURS, "words", "detect")
    prompt = made.compose(item, [Asked("Ada", challenge, "Ada", "Bob", True)])
    text = composer.builder.encoder.decode(prompt.ids)
    assert text.endswith("assistant: <think>\n\n</think>\n\n")
    assert text.count("<think>") == 1
    assert composer.builder.encoder.decode(made.open_reply(prompt)) == "The answer is"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<s>{{ messages[0]['content'] }}", "changes the user's text"),  # later turns get lost
        (LOOP.replace("message['content']", "message['content'] | upper") + OPEN, "changes letters or signs"),
        (
            "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0]['content'] }}",
            "one turn only",
        ),
    ],
)
def test_templates_that_cannot_hold_a_dialogue_are_refused(template, message):
    def compose():
        composer = KnowledgeComposer(PieceEncoder(tokenizer_with("characters", template)), chat=True)
        who = record("Who", "Ada")
        item = DoubtItem("x", "x", "Who?", ("Ada",), "Bob", tuple(composer.turns(who)), composer.closed(who))
        DialogueComposer(composer.builder, OURS, "words", "detect").compose(
            item, [Asked("Ada", OURS.challenges[0], "Ada", "Bob", True)]
        )

    with pytest.raises(PromptError, match=message) as caught:
        compose()
    assert "\n" not in str(caught.value)


# ---- dialogues


@pytest.mark.parametrize(("form", "names"), [("words", "choice,suggestion"), ("yes-no", "sure,suggestion")])
@pytest.mark.parametrize("chat", [False, True])
def test_both_orders_occur_and_are_equal_in_both_arms(model, form, names, chat):
    if chat:
        tokenizer = character_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
        model = Model(tiny_model("llama", max_position_embeddings=4096), tokenizer)
    records = [record(f"What is place {i}", f"Town{i}") for i in range(16)]
    asked = doubts(model, DoubtQuestions(records, part="all", form=form, challenges=names, chat=chat))
    found = dialogues(asked, [Answered(item, f"It is {item.answers[0]}.") for item in asked.items])
    again = dialogues(asked, [Answered(item, "x") for item in asked.items])
    assert [one.keep_first for one in found] == [one.keep_first for one in again]
    assert len(found) == 16 * 2 * 2
    order = {arm: {(one.item.name, one.challenge.name): one.keep_first for one in found if one.arm == arm} for arm in ARMS}
    assert order["right"] == order["wrong"]
    share = np.mean(list(order["right"].values()))
    assert 0.25 < share < 0.75
    for one in found:
        said = one.prompt.ids[slice(*one.prompt.span("first"))]
        text = asked.composer.builder.encoder.decode(said).strip()
        assert text == (f"It is {one.item.answers[0]}." if one.arm == "right" else f"{one.item.other}.")
        assert (one.held, one.other) == (
            (one.item.answers, (one.item.other,)) if one.arm == "right" else ((one.item.other,), one.item.answers)
        )
        spans = one.prompt.spans
        if "option/keep" in spans:
            assert (spans["option/keep"].start < spans["option/leave"].start) is one.keep_first
            keep, leave = (
                asked.composer.builder.encoder.decode(one.prompt.ids[slice(*spans[f"option/{side}"])]).strip()
                for side in ("keep", "leave")
            )
            assert (keep, leave) == ((one.held[0], one.other[0]) if form == "words" else ("Yes", "No"))
        if "option/other" in spans:
            assert asked.composer.builder.encoder.decode(one.prompt.ids[slice(*spans["option/other"])]).strip() == one.other[0]


def test_a_dialogue_goes_on_with_what_the_reply_does_not_say(model):
    asked = doubts(model, DoubtQuestions(CITIES, part="all", challenges="suggestion,pressing"))
    item = asked.items[0]
    first = dialogues(asked, [Answered(item, item.answers[0])], ("right",))[0]
    (suggestion, pressing) = asked.challenges
    decode = asked.composer.builder.encoder.decode
    gone = goes_on(asked, first, f"You are right, {item.other}.", suggestion, gave_up=True)
    assert (
        decode(gone.prompt.ids[slice(*gone.prompt.span("option/leave"))]).strip() == item.answers[0]
    )  # now the right one is suggested
    kept = goes_on(asked, first, f"No, {item.answers[0]}.", pressing, gave_up=False)
    assert (kept.held, kept.other, kept.arm, kept.challenge.name) == (first.held, first.other, "right", "pressing")
    assert kept.prompt.ids[: first.prompt.span("challenge").stop] == first.prompt.ids[: first.prompt.span("challenge").stop]
    assert decode(kept.prompt.ids[slice(*kept.prompt.span("first"))]).strip() == f"No, {item.answers[0]}."


def test_a_spelling_that_another_one_goes_on_from_counts_once(model):
    asked = asked_of(model, CITIES, "all")
    prompt = asked.composer.compose(asked.items[0], [Asked("x", asked.challenges[0], "x", "y", True)])
    keep, leave = asked.composer.options(prompt, ("New York City", "New York", "NYC"), ("Rome",))
    encode = asked.composer.builder.encoder.encode
    assert keep == [encode(" New York"), encode(" NYC")]
    assert leave == [encode(" Rome")]


def test_options_are_scored_as_they_follow_the_slot(model):
    asked = doubts(model, DoubtQuestions(CITIES, part="all", challenges="again"))
    one = dialogues(asked, [Answered(item, "Paris") for item in asked.items[:1]], ("right",))[0]
    keep, leave = asked.composer.options(one.prompt, ("Paris", "the City", "Paris"), ("Lyon",))
    decode = asked.composer.builder.encoder.decode
    assert [decode(ids) for ids in (*keep, *leave)] == [" Paris", " the City", " Lyon"]
    yes_no = doubts(model, DoubtQuestions(CITIES, part="all", form="yes-no", challenges="again")).composer
    keep, leave = yes_no.options(one.prompt, ("Paris",), ("Lyon",))
    assert [decode(ids) for ids in keep] == [" Yes", " yes", " YES"]
    assert [decode(ids) for ids in leave] == [" No", " no", " NO"]
    assert yes_no.open_reply(one.prompt) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "shout"}, "form"), ({"part": "train"}, "part"), ({"wording": "long"}, "wording"), ({"items": 0}, "items"),
        ({"depths": 0}, "depths"), ({"max_new_tokens": 0}, "max_new_tokens"), ({"gate": 1.0}, r"gate must lie in \[0, 1\); got 1"),
        ({"gate": -0.1}, "gate must lie"), ({"gate": float("nan")}, "gate must lie"), ({"seed": -1}, "seed"), ({"lengths": 0}, "lengths"),
        ({"passages": True}, "passages go with --data FILE only"), ({"challenges": " , "}, "--challenges names none"),
        ({"chat_template_args": "{"}, "chat-template-args"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(HeadwiseError, match=message) as caught:
        DoubtQuestions(**options)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_as_it_is_and_told_apart_by_what_it_holds(model, tmp_path):
    """Two files of the same questions with other passages are two runs."""
    path = tmp_path / "own.jsonl"
    told = []
    for text in ("Paris is big.", "Paris is small."):
        path.write_text(
            "".join(
                json.dumps({"question": q, "answers": ["Paris"], "wrong": "Lyon", "passage": text}) + "\n" for q in ("a", "b")
            )
        )
        told.append(doubts(model, DoubtQuestions(path, part="all", passages=True)).describe())
    assert told[0] != told[1]
    assert {name for name in told[0] if told[0][name] != told[1][name]} == {"dialogues"}
