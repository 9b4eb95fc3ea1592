"""Questions with documents: readers on rows of every layout, what they keep apart, and prompts with and without the documents."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwise.heads import PromptError
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grounded import LAYOUTS, GroundedRecord, JudgedAnswer, JudgedSentence, drawn, layout_of, read_grounded
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.passages import Passage
from headwise.prompts.sentences import chunks_of, is_refusal, sentences_of
from headwise.testing.tokenizers import character_tokenizer

DATA = Path(__file__).parents[1] / "data" / "grounded"
HERON = GroundedRecord(
    "How do herons nest?",
    (Passage("They nest in colonies.", "Herons"), Passage("Eggs are laid in April.")),
    ("In colonies.",),
    ("colonies",),
    (JudgedAnswer((JudgedSentence("In trees.", 0.0, "no", (1,)), JudgedSentence("So they say.", None)), "someone"),),
    name="h1",
)


def first(layout):
    return read_grounded(DATA / f"{layout}.jsonl")[0]


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"hotpotqa", "nq", "query"}))
def test_every_layout_is_told_by_its_fields(layout):
    rows = [json.loads(line) for line in (DATA / f"{layout}.jsonl").read_text().splitlines()]
    assert {layout_of(row) for row in rows} == {layout}
    assert read_grounded(DATA / f"{layout}.jsonl") == read_grounded(DATA / f"{layout}.jsonl", layout)
    assert layout_of({"question": "q", "answers": ["a"], "passage": "p"}) is None
    assert layout_of(3) is None


def test_labelled_queries_are_questions_with_documents(tmp_path):
    row = {"query": "Where?", "passages": ["By a river.", "In a town."], "gold": [0], "answers": ["river", "stream"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    (found,) = read_grounded(tmp_path / "q.jsonl")
    assert [document.text for document in found.documents] == ["By a river.", "In a town."]
    assert (found.references, found.facts) == (("river", "stream"), ("river",))
    nq = {"question": "Where?", "answers": ["Dunbeck"], "ctxs": [{"title": "", "text": "In Dunbeck.", "isgold": True}]}
    (tmp_path / "n.jsonl").write_text(json.dumps(nq))
    assert layout_of(nq) is None  # a question with a short answer, unless the layout is named
    assert read_grounded(tmp_path / "n.jsonl", "nq")[0].facts == ("Dunbeck",)


def test_clapnq_keeps_unanswerable_questions_apart():
    answered, unanswered = read_grounded(DATA / "clapnq.jsonl")
    assert (answered.answerable, unanswered.answerable) == (True, False)
    assert answered.references == ("Ada Low built the mill at Dunbeck in 1804 .", "It was built by Ada Low .")
    assert unanswered.references == ()
    assert [document.title for document in answered.documents] == ["Dunbeck"]


def test_expertqa_judgements_rest_on_evidence_that_is_in_the_file():
    record, bare = read_grounded(DATA / "expertqa.jsonl")
    assert record.documents == (Passage("Herons nest in colonies. They lay three eggs in April."),)
    assert record.references == ("Herons nest in colonies. They lay three eggs.",)
    told = {one.text: (one.support, one.label, one.documents) for one in record.judged[0].sentences}
    assert told == {
        "Herons nest in colonies.": (1.0, "Complete", (0,)),
        "They lay three eggs.": (0.5, "Partial", (0,)),
        "They never move.": (0.0, "Incomplete", (0,)),
        "They eat stones.": (None, "Complete", ()),  # judged on a page of which the file has no more than the address
        "Thanks.": (0.0, "Missing", ()),
        "They are grey.": (None, "N/A", (0,)),
    }
    assert bare.documents == ()


def test_quotesum_rows_of_one_question_are_one_record_without_marks():
    (record,) = read_grounded(DATA / "quotesum.jsonl")
    assert record.references == ("The mill is built by Ada Low, the church by Bo Hay.", "Ada Low built the mill.")
    assert record.facts == ("Ada Low", "Bo Hay")
    assert [document.title for document in record.documents] == ["Dunbeck mill", "Dunbeck church"]


def test_hagrid_references_are_informative_and_not_unattributable():
    record = first("hagrid")
    assert record.references == ("It burned in 1911.",)
    assert [[(one.text, one.support) for one in answer.sentences] for answer in record.judged] == [
        [("The wheel burned in 1911.", 1.0), ("It was rebuilt in 1912.", 0.0)],
        [("It burned in 1911.", None)],
    ]


def test_webgpt_takes_the_preferred_answer_with_its_own_quotes(tmp_path):
    record = first("webgpt")
    assert (record.references, [one.text for one in record.documents]) == (("Water turns the wheel.",), ["Water turns the wheel of a mill."])
    row = json.loads((DATA / "webgpt.jsonl").read_text())
    (tmp_path / "w.jsonl").write_text(json.dumps(row | {"score_0": -0.5, "score_1": 0.5}))
    (other,) = read_grounded(tmp_path / "w.jsonl")
    assert (other.references, len(other.documents)) == (("Because it is wet.",), 2)


def test_own_rows_are_read_back(tmp_path):
    records = [HERON, replace(HERON, name="", judged=(), answerable=False, references=(), facts=()), first("own")]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(record.row()) + "\n" for record in records))
    assert read_grounded(tmp_path / "own.jsonl") == records
    (tmp_path / "list.json").write_text(json.dumps([record.row() for record in records]))
    assert read_grounded(tmp_path / "list.json") == records


OWN = {"question": "q", "documents": ["d"], "answers": ["a"]}


@pytest.mark.parametrize(
    ("text", "layout", "message"),
    [
        ("", "auto", "holds no questions"),
        ("[3]", "auto", "entry 1: a question is an object"),
        ("{", "auto", "line 1: no valid JSON"),
        (json.dumps(OWN) + '\n{"question": "q"}', "auto", "line 2: the layout own has a field 'documents'"),
        (json.dumps(OWN | {"question": " "}), "auto", "line 1: a question is empty"),
        (json.dumps(OWN | {"documents": [" "]}), "auto", "line 1: a passage is empty"),
        (json.dumps(OWN | {"answers": [3]}), "auto", "line 1: question, answers and facts must be texts"),
        (json.dumps(OWN | {"answerable": "no"}), "auto", "line 1: answerable must be true or false"),
        (json.dumps(OWN | {"judged": [{"sentences": [{"text": "s", "support": 2}]}]}), "auto", "support lies between 0 and 1; got 2"),
        (json.dumps(OWN | {"judged": [{"sentences": [{"text": "s", "support": "yes"}]}]}), "auto", "support must be a number from 0 to 1"),
        (
            json.dumps(OWN | {"judged": [{"sentences": [{"text": "s", "support": 1, "documents": [1]}]}]}),
            "auto",
            r"judged against documents \[1\], counted from 0, of 1",
        ),
        (json.dumps(OWN | {"judged": [{"sentences": [{"text": " ", "support": 1}]}]}), "auto", "a judged sentence is empty"),
        (json.dumps(OWN), "hagrid", "line 1: the layout hagrid has a field 'quotes'"),
        (json.dumps(OWN), "groundbench", "unknown layout 'groundbench'; use auto, clapnq, expertqa"),
        ('{"input": "q", "id": 1, "output": 3, "passages": []}', "auto", "not a row of the layout clapnq"),
    ],
)
def test_files_that_are_refused(tmp_path, text, layout, message):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(PromptError, match=message) as caught:
        read_grounded(tmp_path / "q.jsonl", layout)
    assert "\n" not in str(caught.value)


def test_records_are_drawn_in_an_order_of_the_seed():
    records = [replace(HERON, name=str(i)) for i in range(9)]
    some = drawn(records, 4, 1)
    assert some == drawn(records, 9, 1)[:4]
    assert some != drawn(records, 4, 2)
    assert {one.name for one in drawn(records, 99, 0)} == {str(i) for i in range(9)}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Dr. Low met J. Smith [1][2]. It cost 3.5 dollars, e.g. twice.", ["Dr. Low met J. Smith.", "It cost 3.5 dollars, e.g. twice."]),
        ("- One thing\n2. Two things [3, 4].\n\n* * *", ["One thing", "Two things."]),
        ("Really? Yes! So", ["Really?", "Yes!", "So"]),
        ("", []),
        (" \n ... ", []),
    ],
)
def test_answers_are_cut_into_sentences(text, wanted):
    assert sentences_of(text) == wanted


@given(st.lists(st.text("abc XY", min_size=1).map(str.strip).filter(lambda text: len(text) > 1), max_size=5))
def test_no_word_of_an_answer_is_lost(parts):
    text = ". ".join(parts)
    assert " ".join(sentences_of(text)).replace(".", "").split() == text.replace(".", "").split()


def test_chunks_hold_whole_sentences_and_overlap_by_one():
    text = " ".join(f"Word {'ab' * i} here." for i in range(1, 9))
    chunks = chunks_of([Passage(text, "A title."), Passage("Short one.")], words=10)
    assert chunks[-1] == "Short one."
    assert all(chunk.startswith("A title. Word ab") for chunk in chunks[:-1])
    assert max(len(chunk.split()) for chunk in chunks) <= 12  # and the title
    bodies = [chunk.removeprefix("A title. ") for chunk in chunks[:-1]]
    for one, following in pairwise(bodies):
        assert following.startswith(f"Word {one.split('Word ')[-1]}")
    assert chunks_of([Passage("long " * 30)], words=10) == ["long " * 29 + "long"]
    assert chunks_of([Passage("", "Only a title")]) == ["Only a title."]


@pytest.mark.parametrize(
    "text",
    ["", "I don't know.", "I don’t know that. Mills are nice.", "The passage does not mention it.", "It cannot be determined.", "UNANSWERABLE"],
)
def test_refusals_are_seen(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ["Ada Low built it.", "It burned. The passage does not mention why.", "Nothing is known to be older."])
def test_answers_are_no_refusals(text):
    assert not is_refusal(text)


def test_prompts_with_and_without_documents_ask_in_the_same_words():
    composer = GroundedComposer(PieceEncoder(character_tokenizer()))
    opened, closed = composer.opened(HERON), composer.closed(HERON)
    decode = composer.encoder.decode
    assert decode(opened.ids).endswith("Question: How do herons nest?\nAnswer:")
    assert decode(closed.ids).removeprefix("<s>") == "Question: How do herons nest?\nAnswer:"
    assert decode(opened.ids[slice(*opened.span("passage/1"))]) == "Passage 1: Herons. They nest in colonies."
    assert decode(closed.ids[slice(*closed.span("query"))]).strip() == "How do herons nest?"
    assert decode(opened.ids[slice(*opened.span("query"))]).strip() == "How do herons nest?"
    told = GroundedComposer(PieceEncoder(character_tokenizer()), "instructed").opened(HERON)
    assert "from these passages alone" in decode(told.ids)
    with pytest.raises(PromptError, match="no documents to answer from: h1"):
        composer.opened(replace(HERON, documents=(), judged=()))
    with pytest.raises(PromptError, match="unknown wording 'cloze'; use plain or instructed"):
        GroundedComposer(PieceEncoder(character_tokenizer()), "cloze")
