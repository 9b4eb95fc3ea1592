"""Questions with passages: readers on real rows, mentions, swapped answers, and prompts whose spans read back."""

import gzip
import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.heads import PromptError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.knowledge import WORDINGS, KnowledgeComposer, KnowledgeRecord, KnowledgeWording, read_as, read_knowledge
from headwise.prompts.mentions import find_mentions
from headwise.prompts.passages import Passage
from headwise.prompts.swaps import NO_PASSAGE, NO_SUBSTITUTE, NOT_THERE, TOO_LONG, answer_kind, fact_passages, swap_answers
from headwise.testing.tokenizers import character_tokenizer
from tests.reference.tokenizers import KINDS

DATA = Path(__file__).parents[1] / "data" / "knowledge"
NQ = read_knowledge(DATA / "nq-open-oracle.jsonl.gz")
HARBOUR = KnowledgeRecord(
    "What is the name",
    ("Pimbro Asket", "Asket"),
    Passage('"Pimbro Asket" is the name, asked Mr. Asket. Yes!', "The heron"),
    Passage('"Mr. Green" is the name, asked Mr. Mr. Green. Yes!', "The heron"),
    "Mr. Green",
)
WORDS = ["Pimbro", "Asket", "heron", "1874", "the", "keeps", "asket", "Mr.", "7", "7.5", "(7)", "Asketson", "Pimbro Asket"]


def composer(kind="character", **options):
    tokenizer = character_tokenizer() if kind == "character" else KINDS[kind]()
    return KnowledgeComposer(PieceEncoder(tokenizer), **options)


def read(made, prompt, name):
    span = prompt.span(name)
    return made.builder.encoder.decode(prompt.ids[span.start : span.stop])


def answers_of(prompt):
    return [name for name in prompt.spans if name.startswith("answer/")]


@pytest.mark.parametrize(
    ("file", "count", "kind"),
    [
        ("nq-open-oracle.jsonl.gz", 21, ""),
        ("popqa.json", 4, "place of birth"),
        ("relations.jsonl", 8, "fruit inside color"),
        ("known-facts.json", 3, "P30"),
    ],
)
def test_real_rows_are_read(file, count, kind):
    records = read_knowledge(DATA / file)
    assert len(records) == count
    assert records[0].kind == kind
    for record in records:
        if record.passage is not None:
            assert find_mentions(record.passage.text, record.answers[:1]), record.label


def test_the_answer_that_the_passage_mentions_comes_first():
    record = next(r for r in NQ if "shepherd" in r.question)
    assert record.answers == ("mashed potato", "minced meat")


def test_a_subject_with_several_objects_is_one_record(tmp_path):
    samples = [{"subject": "a", "object": "b"}, {"subject": "c", "object": "d"}, {"subject": "a", "object": "e"}]
    row = {"name": "r", "prompt_templates": ["{} is"], "prompt_templates_zs": [], "samples": samples}
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    assert [(r.question, r.answers) for r in read_knowledge(tmp_path / "r.jsonl")] == [("a is", ("b", "e")), ("c is", ("d",))]


def test_nq_swap_passages_lose_their_tags(tmp_path):
    row = {"question": "who keeps it", "org_context": "<P> Ada Low keeps it . </P>", "org_answer": ["Ada Low"]}
    row |= {"sub_context": "<P> Bo Hay keeps it . </P>", "sub_answer": ["Bo Hay"]}
    (tmp_path / "swap.jsonl").write_text(json.dumps(row))
    (record,) = read_knowledge(tmp_path / "swap.jsonl")
    assert record.passage == Passage("Ada Low keeps it .")
    assert (record.swapped, record.swapped_answer) == (Passage("Bo Hay keeps it ."), "Bo Hay")
    assert swap_answers([record]) == [replace(record, kind="person")]  # what is swapped already stays so


def test_own_rows_are_read_back(tmp_path):
    records = [HARBOUR, replace(HARBOUR, kind="person", subject="heron", name="7"), KnowledgeRecord("who", ("I", "me"))]
    with gzip.open(tmp_path / "own.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record.row()) + "\n" for record in records)
    assert read_knowledge(tmp_path / "own.jsonl.gz") == records


@pytest.mark.parametrize(
    ("text", "layout", "message"),
    [
        ("", "auto", "holds no questions"),
        ("[]", "auto", "holds no questions"),
        ("[3]", "auto", "entry 1: a question is an object"),
        ("{", "auto", "line 1: no valid JSON"),
        ('{"question": "q", "answers": ["a"]}\n{"question": "q"}', "auto", "line 2: the layout own has a field 'answers'"),
        ('{"question": "q", "answers": []}', "auto", "line 1: no answer"),
        ('{"question": " ", "answers": ["a"]}', "auto", "line 1: a question is empty"),
        ('{"question": "q", "answers": ["a"], "passage": "\\t"}', "auto", "line 1: a passage is empty"),
        ('{"question": "q", "answers": ["a"], "ctxs": [{"title": "", "text": " "}]}', "nq", "line 1: a passage is empty"),
        ('{"question": "q", "answers": [3]}', "auto", "line 1: question and answers must be texts"),
        ('{"question": "q", "answers": 3}', "auto", "line 1: not a row of the layout own"),
        (
            '{"question": "q", "answers": ["a"], "swapped": "b"}',
            "auto",
            "line 1: a swapped passage and the swapped answer go together",
        ),
        ('{"question": "q", "answers": ["a"]}', "nq", "line 1: the layout nq has a field 'ctxs'"),
        ('{"question": "q", "answers": ["a"]}', "wiki", "unknown layout 'wiki'"),
    ],
)
def test_files_that_are_refused(tmp_path, text, layout, message):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(PromptError, match=message) as caught:
        read_knowledge(tmp_path / "q.jsonl", layout)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "phrases", "found"),
    [
        ("17 or 1.7 or 7,731 or 7. Or 7", ["7"], ["7", "7"]),
        ("US or us", ["US"], ["US"]),
        ("the Moon, THE  moon", ["The Moon"], ["the Moon", "THE  moon"]),
        ("New York City, New York", ["New York", "New York City"], ["New York City", "New York"]),
        ("Help! Helping Help", ["Help!"], ["Help!"]),
        ("anything", ["", " "], []),
        ("法国的首都是巴黎。", ["巴黎"], ["巴黎"]),
        ("私は東京に住んでいます", ["東京", "京"], ["東京"]),
        ("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", ["กรุงเทพ", "ไทย"], ["กรุงเทพ", "ไทย"]),
        ("首都はParisです。7月、17月", ["Paris", "7"], ["Paris", "7"]),
        ("インドネシアとインド", ["インド"], ["インド"]),  # Indonesia and India
        ("十三人和三人", ["三"], ["三"]),  # thirteen and three
        ("๑๗ และ ๗", ["๗"], ["๗"]),  # 17 and 7
        ("Νέα Αθήνα, Αθήνας", ["Αθήνα"], ["Αθήνα"]),
    ],
)
def test_mentions_are_whole_words(text, phrases, found):
    assert [text[start:stop] for start, stop in find_mentions(text, phrases)] == found


SPACED = st.text(st.sampled_from("aBßéж7٧1ａ_.,' -\u0301\n"), max_size=12)


@given(SPACED, st.lists(SPACED, max_size=3))
def test_in_scripts_with_spaces_a_mention_has_no_letter_or_digit_on_either_side(text, phrases):
    """The rule by its word boundaries alone: nothing that is known of other scripts changes it."""
    wanted = sorted({" ".join(phrase.split()) for phrase in phrases} - {""}, key=len, reverse=True)
    found, at = [], 0
    while wanted and at < len(text):
        fits = [(at, stop) for phrase in wanted if (stop := slow_mention(text, at, phrase)) is not None]
        found += fits[:1]
        at = fits[0][1] if fits else at + 1
    assert [tuple(one) for one in find_mentions(text, phrases)] == found


def slow_mention(text, at, phrase):
    """Where a phrase that begins at a place ends, if it is mentioned there."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    match = re.compile(words, 0 if phrase.upper() == phrase else re.IGNORECASE).match(text, at)
    if match is None:
        return None
    before, behind = text[:at], text[match.end() :]
    if re.match(r"\w", phrase) and (re.search(r"\w\Z", before) or re.search(r"\d[.,]\Z", before)):
        return None
    if re.search(r"\w\Z", phrase) and (re.match(r"\w", behind) or re.match(r"[.,]\d", behind)):
        return None
    return match.end()


UNSPACED = st.text(st.sampled_from("東京都のไทยa "), max_size=8)


@given(UNSPACED, UNSPACED, st.text(st.sampled_from("東京ไ"), min_size=1, max_size=3))
def test_in_scripts_without_spaces_a_mention_is_found_wherever_it_stands(front, back, phrase):
    text = front + phrase + back
    assert len(find_mentions(text, [phrase])) == text.count(phrase)


@pytest.mark.parametrize(
    ("question", "answer", "kind"),
    [
        ("when was it", "19 September 2017", "date"),
        ("when was it", "mid November 1994", "date"),
        ("when was it", "the 1990s", "year"),
        ("how many", "201", "number"),
        ("how many", "Twenty-one", "number"),
        ("how long", "about 5 liters", "number"),
        ("who sang it", "Ada Low", "person"),
        ("where is it", "the Isle of Man", "place"),
        ("which country is it", "Norway", "place"),
        ("what is it", "The Lightning Thief", "name"),
        ("what is it", "mashed potato", "phrase"),
    ],
)
def test_types_of_answers(question, answer, kind):
    assert answer_kind(question, answer) == kind


def test_swaps_of_real_rows():
    dropped = Counter()
    swapped = swap_answers(NQ, seed=3, dropped=dropped)
    assert len(swapped) + dropped.total() == len(NQ)
    assert len(swapped) >= 18
    own = {answer: r.kind for r in swapped for answer in r.answers[:1]}
    for record in swapped:
        text = read_as(record.swapped)
        assert find_mentions(text, [record.swapped_answer])
        assert not find_mentions(text, record.answers)
        assert own.get(record.swapped_answer, record.kind) == record.kind
    assert swapped == swap_answers(NQ, seed=3)
    assert [r.swapped_answer for r in swapped] != [r.swapped_answer for r in swap_answers(NQ, seed=4)]


@given(data=st.data(), seed=st.integers(0, 9))
@pytest.mark.slow
def test_a_swap_replaces_every_mention_and_nothing_else(data, seed):
    names = ["Ada Low", "Bo Hay", "Cyd", "Dee Fox", "Eve"]
    words = st.lists(st.sampled_from([*names, "saw", "the", "Adam", "near"]), min_size=1, max_size=8)
    records = []
    for name in names:
        text = " ".join([*data.draw(words), name])
        records.append(KnowledgeRecord("who is it", (name,), Passage(text, data.draw(st.sampled_from(["", "On Cyd"])))))
    dropped = Counter()
    for record in swap_answers(records, seed, dropped):
        (before,) = (one for one in records if one.answers == record.answers)
        assert record.swapped_answer in names
        assert not find_mentions(f"{before.passage.title} {before.passage.text}", [record.swapped_answer])
        for old, new in zip(before.passage, record.swapped, strict=True):
            assert new.count(record.swapped_answer) == len(find_mentions(old, record.answers))
            assert new.replace(record.swapped_answer, record.answers[0]) == old
    assert set(dropped) <= {NO_SUBSTITUTE}


def test_records_that_cannot_be_swapped_are_counted():
    said = Passage("Ada Low keeps it.")
    records = [
        KnowledgeRecord("who keeps it", ("Ada Low",), said),
        KnowledgeRecord("who keeps it", ("Ada Low",)),
        KnowledgeRecord("who keeps it", ("Bo Hay",), said),
        KnowledgeRecord("who keeps it", ("Ada Low keeps it",), Passage("one two three four five six seven. Ada Low keeps it")),
        KnowledgeRecord("who keeps it", ("one two three four five six seven",), Passage("one two three four five six seven")),
        KnowledgeRecord("when was it", ("1874",), Passage("It was in 1874.")),
    ]
    dropped = Counter()
    assert swap_answers(records, dropped=dropped) == []  # the only other persons begin with the same word
    assert dropped == {NO_PASSAGE: 1, NOT_THERE: 1, TOO_LONG: 1, NO_SUBSTITUTE: 3}
    with pytest.raises(PromptError, match="seed must be at least 0"):
        swap_answers(records, -1)


def test_passages_of_completed_sentences():
    facts = read_knowledge(DATA / "relations.jsonl")
    made = fact_passages(facts, 3, seed=1)
    assert made == fact_passages(facts, 3, seed=1) != fact_passages(facts, 3, seed=2)
    for before, record in zip(facts, made, strict=True):
        assert replace(record, passage=None) == before
        assert f"{record.question} {record.answers[0]}." in record.passage.text
        assert len(find_mentions(record.passage.text, record.answers)) == 1
    assert fact_passages([HARBOUR]) == [HARBOUR]
    assert fact_passages(facts[:1])[0].passage.text == f"{facts[0].question} {facts[0].answers[0]}."  # there is nobody else
    with pytest.raises(PromptError, match="sentences must be at least 1"):
        fact_passages(facts, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_spans_of_every_kind_of_tokenizer(kind):
    made = composer(kind)
    for swapped, said in ((False, ["Pimbro Asket", "Asket"]), (True, ["Mr. Green", "Mr. Green"])):
        prompt = made.opened(HARBOUR, swapped)
        assert [read(made, prompt, name).strip() for name in answers_of(prompt)] == said
        assert read(made, prompt, "question").strip() == "What is the name?"
        passage = HARBOUR.swapped if swapped else HARBOUR.passage
        assert read(made, prompt, "passage/1").endswith(f": {read_as(passage)}")  # the words of the tag are the wording's
        assert made.builder.encoder.decode(prompt.gold).strip() == ("Mr. Green" if swapped else "Pimbro Asket")
        assert made.first_token("Mr. Green" if swapped else "Pimbro Asket") == prompt.gold[0]
    prompt = made.closed(HARBOUR)
    assert set(prompt.spans) == {"question"}
    assert made.builder.encoder.decode(prompt.ids).removeprefix("<s>").strip() == "Question: What is the name?\nAnswer:"


def test_the_cuts_at_mentions_do_not_change_the_tokens():
    made = composer("byte_level")
    prompt = made.opened(HARBOUR)
    whole = made.builder.encoder.encode(f" {read_as(HARBOUR.passage)}\n")
    span = prompt.span("passage/1")
    assert prompt.ids[span.stop - len(whole) + 1 : span.stop] == whole[:-1]


def test_several_passages_count_their_mentions_in_order():
    made = composer()
    shown = [Passage("Nothing."), HARBOUR.passage, Passage("Asket again", "About Asket")]
    prompt = made.opened(HARBOUR, passages=shown)
    assert [read(made, prompt, name) for name in answers_of(prompt)] == ["Pimbro Asket", " Asket", " Asket", " Asket"]
    assert answers_of(prompt) == ["answer/1", "answer/2", "answer/3", "answer/4"]
    assert [read(made, prompt, f"passage/{i}") for i in (1, 3)] == ["Passage 1: Nothing.", "Passage 3: About Asket. Asket again"]


def test_examples_stand_in_front_and_have_no_spans():
    made = composer(examples=[KnowledgeRecord("is it Asket", ("yes",), Passage("It is Asket: yes."))])
    text = made.builder.encoder.decode(made.closed(HARBOUR).ids)
    assert text == "<s>Question: is it Asket?\nAnswer: yes\n\nQuestion: What is the name?\nAnswer:"
    prompt = made.opened(HARBOUR)
    assert made.builder.encoder.decode(prompt.ids).count("Passage 1:") == 2
    assert [read(made, prompt, name) for name in answers_of(prompt)] == ["Pimbro Asket", " Asket"]
    assert read(made, prompt, "passage/1").startswith("Passage 1: The heron.")


@pytest.mark.parametrize("kind", ["byte_level", "byte_level_without_bos"])
@pytest.mark.parametrize("examples", [(), (HARBOUR,)])
def test_no_passage_holds_the_first_token(kind, examples):
    made = composer(kind, examples=examples)
    prompt = made.opened(HARBOUR)
    assert prompt.span("passage/1").start >= 1
    in_front = made.builder.encoder.decode(prompt.ids[len(made.builder.head) :])
    assert in_front.startswith("\nPassage 1:") == (kind == "byte_level_without_bos")
    assert not made.builder.encoder.decode(made.closed(HARBOUR).ids).startswith("\n")


def test_wordings_and_chat():
    cloze = composer(wording="cloze")
    assert cloze.builder.encoder.decode(cloze.closed(HARBOUR).ids) == "<s>What is the name"
    own = composer(wording=KnowledgeWording("Read.", "Think.", "Text:", "Q:", "A:"))
    assert own.builder.encoder.decode(own.closed(HARBOUR).ids) == "<s>Think.\nQ: What is the name?\nA:"
    assert own.builder.encoder.decode(own.opened(HARBOUR).ids).startswith("<s>Read.\nText: The heron.")
    tokenizer = KINDS["byte_level_without_bos"]()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    shots = [KnowledgeRecord("is it Asket", ("yes",))]
    chat = KnowledgeComposer(PieceEncoder(tokenizer), chat=True, examples=shots)
    text = chat.builder.encoder.decode(chat.closed(HARBOUR).ids)
    first = "<|im_start|>user\nQuestion: is it Asket?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert text == f"{first}<|im_start|>user\nQuestion: What is the name?<|im_end|>\n<|im_start|>assistant\n"
    assert chat.first_token("Asket") == PieceEncoder(tokenizer).encode("Asket")[0]
    assert chat.describe()["examples"] == [shots[0].row()]
    assert set(WORDINGS) == {"plain", "instructed", "cloze", "bare"}


def test_prompts_that_cannot_be_made():
    made = composer()
    bare = KnowledgeRecord("who", ("I",))
    for case, message in (
        (lambda: made.opened(bare), "no passage to read the answer from: who"),
        (lambda: made.opened(bare, swapped=True), "no swapped passage"),
        (lambda: made.opened(bare, passages=[Passage("a"), Passage(" ")]), "passage 2 is empty"),
        (lambda: made.first_token("~~"), "does not survive tokenisation"),
        (lambda: made.first_token(" "), "an answer is empty"),
        (lambda: composer(wording="poem"), "unknown wording 'poem'"),
    ):
        with pytest.raises(PromptError, match=message):
            case()


@pytest.mark.parametrize("kind", ["character", "byte_level", "llama2_like"])
@settings(max_examples=40)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), gaps=st.sampled_from([" ", "\n", ", "]))
def test_every_mention_reads_back(kind, words, gaps):
    made, text = composer(kind), gaps.join(words)
    record = KnowledgeRecord("who is it", ("Pimbro Asket", "Asket", "7"), Passage(text))
    prompt = made.opened(record)
    shown = f" {text}"
    wanted = [shown[start:stop] for start, stop in find_mentions(shown, record.answers)]
    assert [read(made, prompt, name).strip() for name in answers_of(prompt)] == wanted
    spans = [prompt.span(name) for name in answers_of(prompt)]
    whole = prompt.span("passage/1")
    assert all(whole.start < span.start and span.stop <= whole.stop for span in spans)
    assert all(one.stop <= two.start for one, two in pairwise(spans))
    assert made.builder.encoder.decode(prompt.ids[whole.start : whole.stop]).strip() == f"Passage 1: {text}"
