"""Prompts: pieces of every kind of tokenizer, spans that hold what they name, templates, needles, haystack windows."""

import gzip
import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwise.heads import PromptError
from headwise.methods.copy.options import Copy
from headwise.prompts.encoder import PieceEncoder, newline_ids
from headwise.prompts.grid import (
    GridOptions,
    Task,
    default_lengths,
    describe_task,
    even_depths,
    group_specs,
    make_group,
    paper_lengths,
    shared_places,
)
from headwise.prompts.haystack import Haystack, Window, _stretches, bundled_texts, clean, read_texts, split_sentences
from headwise.prompts.needles import Needle, NeedleComposer, bundled_needles, read_needles
from headwise.runtime.needle_runs import given_needles
from headwise.testing.tokenizers import character_tokenizer, word_tokenizer
from tests.reference.official_span import official_span
from tests.reference.tokenizers import KINDS, TEXT

PREFIX = "The harbour master of Vostelle keeps a tame heron called"
QUESTION = "What is the name of the heron?"
NEEDLE = Needle(f"{PREFIX} Pimbro Asket.", QUESTION, "Pimbro Asket", PREFIX)
LLAMA_CHAT = "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"
CHATML = "<|im_start|>user\n{{ messages[0]['content'] }}<|im_end|>\n<|im_start|>assistant\n\n"
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param, KINDS[request.param]()


@pytest.fixture(scope="module")
def encoder(kind):
    return PieceEncoder(kind[1])


@pytest.fixture(scope="module")
def haystack(encoder):
    return Haystack([TEXT], encoder)


@pytest.fixture(scope="module")
def plain():
    return PieceEncoder(character_tokenizer())


def read(encoder, prompt, name):
    start, stop = prompt.span(name)
    return encoder.decode(prompt.ids[start:stop]).strip()


# ---- pieces


@pytest.mark.parametrize("text", [" heron", " heron called", "\n", "\nAnswer", " Pimbro Asket", ".", "?", "a", "The", "\n\n"])
def test_a_piece_reads_back(encoder, text):
    ids = encoder.encode(text)
    assert ids
    assert encoder.decode(ids).strip() == text.strip()


def test_joined_pieces_are_the_tokens_of_the_whole_text(kind, encoder):
    tokenizer = kind[1]
    pieces = [" The", " harbour master", " of Vostelle", "\nAnswer:", " Pimbro Asket", "\n"]
    joined = [token for piece in pieces for token in encoder.encode(piece)]
    assert joined == tokenizer.encode("a" + "".join(pieces), add_special_tokens=False)[1:]


def test_bos_is_known_only_where_the_tokenizer_adds_it(kind, encoder):
    name, tokenizer = kind
    assert encoder.bos == (() if name == "byte_level_without_bos" else (tokenizer.bos_token_id,))


def test_bytes_outside_the_vocabulary_survive_or_are_refused(kind, encoder):
    if kind[0] in ("words", "characters"):
        with pytest.raises(PromptError, match=r"answer 'жук' does not survive tokenisation .*; reword it"):
            encoder.encode_checked(" жук", "answer")
    else:
        assert encoder.decode(encoder.encode_checked(" жук", "answer")).strip() == "жук"


def test_newline_ids_are_the_pieces_that_print_a_line_break(kind):
    tokenizer = kind[1]
    found = newline_ids(tokenizer)
    assert found == {i for i in tokenizer.get_vocab().values() if "\n" in tokenizer.decode([i])}
    assert tokenizer.encode("a\n", add_special_tokens=False)[-1] in found


def test_the_maltese_letter_is_no_line_break():
    # In a byte-level vocabulary this letter spells the line break; in a SentencePiece or word vocabulary it is a letter.
    tokenizer = word_tokenizer(["Ċensu lives in Ħamrun."])
    assert newline_ids(tokenizer) == {tokenizer.get_vocab()["\n"]}


# ---- composed prompts


@pytest.mark.parametrize("depth", DEPTHS)
def test_spans_hold_what_they_name(encoder, haystack, depth):
    window = haystack.window(50, (3,))
    prompt = NeedleComposer(encoder).compose(window, NEEDLE, depth)
    assert set(prompt.spans) == {"context", "needle", "answer", "question"}
    assert read(encoder, prompt, "needle") == NEEDLE.needle
    assert read(encoder, prompt, "answer") == NEEDLE.answer
    assert read(encoder, prompt, "question") == NEEDLE.question
    assert encoder.decode(prompt.ids).endswith(f"\nQuestion: {QUESTION}\nAnswer: {PREFIX}")
    context, needle = prompt.span("context"), prompt.span("needle")
    assert context.length == 50 + needle.length == 50 + NeedleComposer(encoder).context_cost(NEEDLE)
    assert prompt.ids[context.start : needle.start] + prompt.ids[needle.stop : context.stop] == window.ids
    assert needle.start - context.start == window.place(depth)
    assert context.start == len(encoder.bos)


def test_the_gold_answer_begins_with_the_ids_of_the_answer_in_the_needle(encoder, haystack):
    prompt = NeedleComposer(encoder).compose(haystack.window(30, (1,)), NEEDLE, 0.5)
    start, stop = prompt.span("answer")
    assert prompt.gold[: stop - start] == prompt.ids[start:stop]
    assert encoder.decode(prompt.gold).strip() == "Pimbro Asket."
    assert prompt.gold[-1] in newline_ids(encoder.tokenizer)


@pytest.mark.parametrize(
    "needle",
    [
        Needle("Pimbro Asket is the name of the heron.", QUESTION, "Pimbro Asket"),
        Needle("the heron is called Pimbro", QUESTION, "Pimbro", "the heron is called"),
        Needle('"Is it so?" she asked.', QUESTION, "Is it so"),
    ],
)
def test_answers_at_the_ends_of_a_needle_and_inside_quotes(encoder, haystack, needle):
    prompt = NeedleComposer(encoder).compose(haystack.window(30, (1,)), needle, 0.5)
    assert read(encoder, prompt, "needle") == needle.needle
    assert read(encoder, prompt, "answer") == needle.answer
    start, stop = prompt.span("answer")
    assert prompt.gold[: stop - start] == prompt.ids[start:stop]


def test_whole_prompt_equals_the_tokens_of_its_text(kind, encoder, haystack):
    """Where pieces cannot merge across our joints (all but SentencePiece without word splitting), nothing betrays the needle."""
    name, tokenizer = kind
    if name == "llama2_like":
        pytest.skip("this kind merges a word with its full stop")
    ids = NeedleComposer(encoder).compose(haystack.window(40, (3,)), NEEDLE, 0.5).ids[len(encoder.bos) :]
    text = encoder.decode(ids)
    space = "" if text.startswith((" ", "\n")) else " "
    assert list(ids) == tokenizer.encode("a" + space + text, add_special_tokens=False)[1:]


def test_bos_occurs_exactly_once(kind, encoder, haystack):
    bos = kind[1].bos_token_id
    for depth in (0.0, 0.5, 1.0):
        ids = NeedleComposer(encoder).compose(haystack.window(20, (1,)), NEEDLE, depth).ids
        if bos is not None:
            assert ids.count(bos) == 1
            assert ids[0] == bos


# ---- templates


def compose(encoder, template=None, needle=NEEDLE, **options):
    text = encoder.decode(
        NeedleComposer(encoder, template, **options).compose(Haystack(["Yes. No."], encoder).window(5, (0,)), needle, 0.0).ids
    )
    return text.removeprefix("<s>")


def test_template_without_answer_prefix(plain):
    assert compose(plain, "{context}\nQ: {question}\nA:").endswith(f"\nQ: {QUESTION}\nA:")


def test_needle_without_answer_prefix_leaves_no_space_at_the_end(plain):
    bare = Needle(NEEDLE.needle, QUESTION, NEEDLE.answer)
    assert compose(plain, None, bare).endswith(f"\nQuestion: {QUESTION}\nAnswer:")


def test_trailing_space_of_a_template_is_dropped(plain):
    assert compose(plain, "{context}\nQ: {question}\nA: ").endswith(f"\nQ: {QUESTION}\nA:")


def test_text_before_the_context_and_fields_side_by_side(plain):
    text = compose(plain, "Read: {context} {question} {answer_prefix}")
    assert text.startswith("Read:")
    assert text.endswith(f" {QUESTION} {PREFIX}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{context} {question} {colour}", r"unknown field \{colour\} in the template; use \{context\}"),
        ("{context} {} {question}", r"unknown field \{\}"),
        ("{question}", r"must contain \{context\} exactly once; it contains it 0 times"),
        ("{context}", r"must contain \{question\} exactly once"),
        ("{context}{context}{question}", r"it contains it 2 times"),
    ],
)
def test_bad_templates_are_refused(plain, template, message):
    with pytest.raises(PromptError, match=message) as error:
        NeedleComposer(plain, template)
    assert "\n" not in str(error.value)


# ---- chat templates


def with_chat(name, template):
    tokenizer = KINDS[name]()
    tokenizer.chat_template = template
    return PieceEncoder(tokenizer)


@pytest.mark.parametrize("name", ["byte_level", "llama2_like", "unigram", "characters"])
@pytest.mark.parametrize("template", [LLAMA_CHAT, CHATML])
def test_chat_prompts_read_as_the_template_says(name, template):
    encoder = with_chat(name, template)
    tokenizer = encoder.tokenizer
    composer = NeedleComposer(encoder, "{context}\n{question}", chat=True)
    window = Haystack([TEXT], encoder).window(20, (1,))
    prompt = composer.compose(window, NEEDLE, 0.5)
    context = encoder.decode((*encoder.encode("a"), *prompt.ids[slice(*prompt.span("context"))]))[1:]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{context}\n{QUESTION}"}], tokenize=False, add_generation_prompt=True
    )
    assert encoder.decode(prompt.ids) == encoder.decode(tokenizer.encode(text, add_special_tokens=False))
    assert read(encoder, prompt, "answer") == NEEDLE.answer
    assert prompt.ids.count(tokenizer.bos_token_id) == (1 if template == LLAMA_CHAT else 0)


def test_chat_without_a_chat_template_is_refused(plain):
    with pytest.raises(PromptError, match="has no chat template; leave --chat out"):
        NeedleComposer(plain, chat=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] }}{{ messages[0]['content'] }}", "changes the user's text"),
        ("nothing", "changes the user's text"),
        ("{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}", "opens the prompt with 2 BOS tokens; expected one"),
    ],
)
def test_chat_templates_that_cannot_work_are_refused(template, message):
    with pytest.raises(PromptError, match=message):
        NeedleComposer(with_chat("characters", template), chat=True)


# ---- needles


def test_an_answer_must_stand_in_its_needle_exactly_once():
    with pytest.raises(PromptError, match=r"'heron' must occur exactly once in its needle .* it occurs 0 times"):
        Needle("A stork stands here.", QUESTION, "heron")
    with pytest.raises(PromptError, match="it occurs 2 times"):
        Needle("A heron saw a heron.", QUESTION, "heron")


@pytest.mark.parametrize("field", ["needle", "question", "answer"])
def test_empty_fields_are_refused(field):
    fields = {"needle": "A heron.", "question": "Who?", "answer": "heron"} | {field: " "}
    with pytest.raises(PromptError, match=f"needs a {field} that is not empty"):
        Needle(**fields)


def test_a_needle_that_cannot_be_tokenised_raises(plain):
    needle = Needle("The answer is жук.", QUESTION, "жук")
    with pytest.raises(PromptError, match="answer 'жук' does not survive tokenisation"):
        NeedleComposer(plain).compose(Haystack(["Yes. No."], plain).window(5, (0,)), needle, 0.5)


def test_parts_keep_the_space_with_the_answer():
    assert NEEDLE.parts == (PREFIX, " Pimbro Asket", ".")
    assert Needle('He said "yes".', "?", "yes").parts == ('He said "', "yes", '".')


def row(**changes):
    return json.dumps({"needle": "A heron.", "question": "Who?", "answer": "heron"} | changes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row(), "{not json"], r"needles.jsonl, line 2: no valid JSON"),
        ([row(), "", '{"needle": "A heron."}'], r"line 3: every needle needs the fields needle, question, answer"),
        (["[1, 2]"], r"line 1: every needle needs the fields"),
        ([row(), row(), row(answer="stork")], r"line 3: the answer 'stork' must occur exactly once"),
        ([row(question="")], r"line 1: a needle needs a question"),
        (["", " "], r"holds no needle; write one JSON object per line"),
        ([row(needle=["A heron."])], r"line 1: needle must be a text; got \"\['A heron.'\]\""),
        ([row(), row(answer=5, needle="5 herons.")], r"line 2: answer must be a text; got '5'"),
        ([row(question=None)], r"line 1: question must be a text; got 'None'"),
        ([row(answer_prefix=False)], r"line 1: answer_prefix must be a text"),
        (
            [r'{"needle": "A \ud800 heron.", "question": "Who?", "answer": "heron"}'],
            r"line 1: the text holds half of a surrogate pair",
        ),
    ],
)
def test_needle_files_with_errors_name_the_line(tmp_path, lines, message):
    path = tmp_path / "needles.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(PromptError, match=message) as error:
        read_needles(path)
    assert "\n" not in str(error.value)


def test_needle_files_are_read(tmp_path):
    path = tmp_path / "needles.jsonl"
    path.write_text(f"{row()}\n\n{row(answer_prefix='A')}\n{row(answer_prefix=None)}\n")
    assert [needle.answer_prefix for needle in read_needles(path)] == ["", "A", ""]
    with pytest.raises(PromptError, match="cannot read needles from"):
        read_needles(tmp_path / "none.jsonl")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PromptError, match="cannot read needles from"):
        read_needles(path)


def test_bundled_needles_are_sound():
    detect, test = bundled_needles("detect"), bundled_needles("test")
    assert len(detect) == len(test) == 16
    assert bundled_needles() == detect + test or set(bundled_needles()) == set(detect + test)
    assert not {n.answer for n in detect} & {n.answer for n in test}
    assert all(needle.needle.startswith(needle.answer_prefix) for needle in detect + test)


# Words that carry no content: they may stand in a needle and in its question.
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of to in on at by with for from off up down under over along behind beside into and or but that which who whom whose what when "
        "where why how is are was were be been being has have had does do did not no only it its his her their this those these they he she as "
        "there here any all",
    )
)


def content_stems(text):
    """First four letters, without a final s, of all words that carry content."""
    return {word.removesuffix("s")[:4] for word in re.findall(r"[a-z]+", text.lower()) if word not in FUNCTION_WORDS}


def test_paraphrased_needles_share_no_content_word_with_their_question():
    paraphrased, literal = bundled_needles("paraphrased"), bundled_needles("literal")
    assert len(paraphrased) == len({needle.answer for needle in paraphrased}) == 24
    for needle in paraphrased:
        asked = content_stems(f"{needle.question} {needle.answer_prefix}")
        assert asked
        assert not asked & content_stems(needle.needle), needle
        assert not needle.needle.startswith(needle.answer_prefix)
    # The control: the same needles, asked in their own words.
    assert [(needle.needle, needle.answer) for needle in literal] == [(needle.needle, needle.answer) for needle in paraphrased]
    for needle in literal:
        asked = content_stems(needle.question) - {"must", "alon"}
        assert asked <= content_stems(needle.needle), needle
        assert needle.needle.startswith(needle.answer_prefix)
    others = {needle.answer for needle in bundled_needles()}
    assert len(others) == 32
    assert not others & {needle.answer for needle in paraphrased}


def test_a_set_of_needles_is_named_where_a_file_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert given_needles(None, "test") == bundled_needles("test")
    assert given_needles("paraphrased", "test") == given_needles(Copy(needles="paraphrased").needles, "test") == bundled_needles("paraphrased")
    assert given_needles([NEEDLE], "test") == [NEEDLE]
    with pytest.raises(PromptError, match="no-such-set"):
        given_needles("no-such-set", "test")
    (tmp_path / "literal").write_text(json.dumps({"needle": "It is x7.", "question": "What is it?", "answer": "x7"}))
    assert len(given_needles("literal", "test")) == 1  # a file of that name goes first


def test_an_unknown_set_of_needles_is_refused():
    with pytest.raises(PromptError, match=r"unknown set of bundled needles 'paraphrase'; use detect, test, paraphrased, literal"):
        bundled_needles("paraphrase")


# ---- haystacks


@given(st.lists(st.sampled_from(["Yes", " no", ".", "!", '"', "?", "\n", " ", "Mr", ")"]), max_size=30).map("".join))
def test_sentences_joined_give_the_text(text):
    pieces = split_sentences(text)
    assert "".join(pieces) == text
    assert all(pieces)


def test_sentences_end_where_sentences_end():
    assert split_sentences('One. "Two?" Three!\nFour 5.6 six') == ["One.", ' "Two?"', " Three!", "\nFour 5.6 six"]


@pytest.fixture(scope="module")
def book(plain):
    return Haystack([bundled_texts()[0][:20_000]], plain)


def test_windows_have_exactly_the_length_and_begin_at_a_sentence(book, plain):
    text = plain.decode(book._ids.tolist())
    for seed in range(5):
        window = book.window(1000, (seed,))
        assert len(window.ids) == 1000
        assert window.ids == book.window(1000, (seed,)).ids
        words = plain.decode(window.ids)
        assert text.count(words) == 1  # contiguous, never repeated
        assert window.places[0] == 0
        assert window.places[-1] == 1000
        for place in window.places[1:-1]:
            assert words[place] in " \n"
            assert words[place] == "\n" or words[:place].rstrip("\"')]")[-1] in ".!?"
    assert len({book.window(1000, (seed,)).ids for seed in range(5)}) > 1


@settings(max_examples=30)
@given(depth=st.floats(0, 1), seed=st.integers(0, 100), tokens=st.integers(50, 4000))
def test_realised_depth_is_within_one_sentence(book, depth, seed, tokens):
    window = book.window(tokens, (seed,))
    place = window.place(depth)
    later = [p for p in window.places if p > place]
    assert place in window.places
    assert place <= round(depth * tokens)
    assert not later or later[0] > round(depth * tokens)
    assert window.place(0.0) == 0
    assert window.place(1.0) == tokens


def test_a_short_haystack_is_refused_and_never_repeated(book, plain):
    size = len(book)
    assert len(book.window(size, (0,)).ids) == size
    with pytest.raises(
        PromptError, match=rf"a context of {size + 1} tokens was asked for, but the haystack has only {size}; add texts"
    ):
        book.window(size + 1, (0,))
    with pytest.raises(PromptError, match="has only"):
        book.window(size // 2 + 100, (0,), part=(0.5, 1.0))
    with pytest.raises(PromptError, match="the haystack is empty"):
        Haystack([], plain)


def test_a_part_of_the_haystack_stays_in_its_part(book):
    all_ids, middle = book._ids.tolist(), len(book) // 2
    for seed in range(10):
        ids = list(book.window(200, (seed,), part=(0.0, 0.5)).ids)
        assert any(all_ids[i : i + 200] == ids for i in range(middle - 199))


def test_texts_of_a_folder(tmp_path):
    (tmp_path / "b.txt").write_text("Two.")
    (tmp_path / "a.md.gz").write_bytes(gzip.compress(b"# Head\n-------\n\nOne\nline.\n\nNext."))
    (tmp_path / "c.pdf").write_text("no")
    assert read_texts(tmp_path) == ["One line.\nNext.", "Two."]
    (tmp_path / "d.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(PromptError, match="cannot read haystack text"):
        read_texts(tmp_path)
    with pytest.raises(PromptError, match="no such haystack folder"):
        read_texts(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptError, match=r"holds no text; expected files ending in \.txt, \.md"):
        read_texts(tmp_path / "empty")


def test_clean_makes_plain_paragraphs():
    assert clean("A “quoted”\r\nword\r\n\r\n## Head\n\n\n’tis—so") == 'A "quoted" word\nHead\n\'tis--so'


def shuffled(words, count, seed, between=" "):
    rng = random.Random(seed)
    return between.join(rng.choice(words) for _ in range(count))


CHINESE = "花飞鸟月雪风树云山水灯河路城狗海"
UNPUNCTUATED_TEXTS = {
    "English without marks": shuffled(
        ["year", "took", "river", "the", "boat", "to", "that", "old", "town", "was", "slow"], 4000, 1
    ),
    "Chinese with marks": shuffled([*CHINESE, "花鸟。", "山，", "海？", "河！」"], 6000, 2, ""),
    "Chinese without marks": shuffled(CHINESE, 6000, 3, ""),
    "a short text without marks": shuffled(["year", "took", "river"], 160, 4),
    "Hindi": shuffled(["नदी", "घर", "शहर।", "रात"], 3000, 5),
    "Arabic": shuffled(["نهر", "بيت", "مدينة؟", "ليل"], 3000, 6),
    "one run of letters": shuffled("ACGT", 4000, 7, ""),
}


@pytest.mark.parametrize("text", UNPUNCTUATED_TEXTS.values(), ids=UNPUNCTUATED_TEXTS)
def test_depths_are_kept_in_texts_without_ascii_sentence_ends(text):
    encoder = PieceEncoder(KINDS["byte_level"]())
    grid = GridOptions((400,), (0.0, 0.25, 0.5, 0.75, 1.0))
    task = Task((NEEDLE,), Haystack([text], encoder), NeedleComposer(encoder), grid)
    group = make_group(group_specs(grid, 1)[0], task, None)
    assert len({prompt.ids for prompt in group.prompts}) == 5
    for wanted, cell, prompt in zip(grid.depths, group.info, group.prompts, strict=True):
        assert abs(cell["realised_depth"] - wanted) < 0.2
        needle, context = prompt.span("needle"), prompt.span("context")
        assert cell["realised_depth"] == round((needle.start - context.start) / (400 - needle.length), 6)
        around = prompt.ids[context.start : needle.start], prompt.ids[needle.stop : context.stop]
        window = encoder.decode(around[0] + around[1])
        if not window.endswith("\ufffd"):  # windows are cut at any token
            assert encoder.decode(around[0]) + encoder.decode(around[1]) == window  # no character is torn apart


def test_words_and_letters_with_marks_are_not_torn_apart():
    words = ["year", "took", "river", "the", "boat"]
    for piece in _stretches(shuffled(words, 500, 1)):
        assert set(piece.split()) <= set(words)
    marked = "e\u0301" * 300
    assert "".join(_stretches(marked)) == marked
    assert all(piece[0] == "e" for piece in _stretches(marked))


def test_sentences_of_other_scripts_end_where_they_end():
    assert split_sentences("他走了。她说：「好！」然后呢？？完") == ["他走了。", "她说：「好！」", "然后呢？？", "完"]
    assert split_sentences("圆周率是3.5。真的?是") == ["圆周率是3.5。", "真的?", "是"]
    assert split_sentences("यह नदी है। वह घर है॥ रात") == ["यह नदी है।", " वह घर है॥", " रात"]
    assert split_sentences("雪……风") == ["雪……", "风"]
    assert split_sentences("Wait… what? Oh…no 3．5") == ["Wait… what?", " Oh…no 3．5"]


def test_a_depth_far_from_the_wanted_one_is_refused():
    window = Window(tuple(range(10_000)), (0, 100, 10_000))
    with pytest.raises(
        PromptError, match=r"depth 0.5 of 10000 tokens was asked for, but the nearest place .* is at 0.01, more than 0.25 away"
    ):
        window.checked_place(0.5)
    assert window.checked_place(0.2) == 100


def test_depths_that_are_one_place_are_counted_per_length(plain):
    """Three sentences have four places between and around them, however many depths are wanted."""
    grid = GridOptions((120, 400), DEPTHS)
    sentence = "The slow river ran on. "  # 23 characters, so 23 tokens
    task = Task((NEEDLE,), Haystack([sentence * 40], plain), NeedleComposer(plain), grid)
    info = [cell for spec in group_specs(grid, 1) for cell in make_group(spec, task, None).info]
    short = {cell["realised_depth"] for cell in info if cell["length"] == 120}
    assert 1 < len(short) < 5
    assert shared_places(info) == [{"length": 120, "depths": 5, "places": len(short)}]
    other = [cell | {"needle": 1, "realised_depth": 0.0} for cell in info]
    assert shared_places([*info, *other]) == [
        {"length": 120, "depths": 5, "places": 1},
        {"length": 400, "depths": 5, "places": 1},
    ]


def test_haystack_files_may_begin_with_a_byte_order_mark_and_must_be_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfIt rained.\r\nThe river rose.\r\n")
    assert read_texts(tmp_path) == ["It rained. The river rose."]
    (tmp_path / "b.txt").write_bytes(b"Fine.\nIt\x92s late.")
    with pytest.raises(PromptError, match=r"cannot read haystack text from .*b.txt, line 2: byte 0x92 is not UTF-8"):
        read_texts(tmp_path)


# ---- the grid


def test_grid_options_are_checked():
    for options, message in [
        ({"lengths": (), "depths": (0.5,)}, "lengths must be positive"),
        ({"lengths": (0,), "depths": (0.5,)}, "lengths must be positive"),
        ({"lengths": (9,), "depths": (50,)}, r"got 50 \(a percentage\? write 0.5\)"),
        ({"lengths": (9,), "depths": ()}, "at least one depth"),
        ({"lengths": (9,), "depths": (0.5,), "windows": 0}, "windows must be at least 1"),
        ({"lengths": (9,), "depths": (0.5,), "seed": -1}, "the seed must be at least 0; got -1"),
    ]:
        with pytest.raises(PromptError, match=message):
            GridOptions(**options)
    assert even_depths(1) == (0.5,)
    assert even_depths(3) == (0.0, 0.5, 1.0)
    assert default_lengths(512) == (128, 256)
    with pytest.raises(PromptError, match="only 100 positions"):
        default_lengths(100)
    assert paper_lengths(None)[::19] == (1000, 50_000)
    assert len(paper_lengths(4096)) == 20
    assert max(paper_lengths(4096)) == 4096 - 128


def test_groups_share_one_window_and_have_the_asked_length(book, plain):
    options = GridOptions((300, 400), (0.0, 0.5, 1.0), windows=2)
    specs = group_specs(options, 2)
    assert len(specs) == len(set(specs)) == len({spec.key for spec in specs}) == 8
    assert specs == group_specs(options, 2)
    task = Task(bundled_needles("detect")[:2], book, NeedleComposer(plain), options)
    for spec in specs:
        group = make_group(spec, task, None)
        assert {prompt.span("context").length for prompt in group.prompts} == {spec.length}
        for prompt, info in zip(group.prompts, group.info, strict=True):
            needle, context = prompt.span("needle"), prompt.span("context")
            assert info["realised_depth"] == round((needle.start - context.start) / (spec.length - needle.length), 6)
            assert info["length"] == spec.length


def test_prompts_that_do_not_fit_are_refused_with_a_length_that_does(book, plain):
    def make(length, positions):
        task = Task(bundled_needles("detect"), book, NeedleComposer(plain), GridOptions((length,), (0.5,)))
        return make_group(group_specs(task.grid, 1)[0], task, positions)

    with pytest.raises(
        PromptError, match=r"a prompt of \d+, but the model has 350 positions; choose --lengths of at most \d+$"
    ) as error:
        make(300, 350)
    fits = int(str(error.value).split()[-1])
    prompt = make(fits, 350).prompts[0]
    assert len(prompt.ids) + len(prompt.gold) == 350
    with pytest.raises(PromptError, match="350 positions"):
        make(fits + 1, 350)
    with pytest.raises(PromptError, match="a context of 20 tokens has no room for the needle"):
        make(20, None)


def test_a_task_description_tells_tasks_apart(book, plain):
    task = Task(bundled_needles("detect"), book, NeedleComposer(plain), GridOptions((300,), (0.5,)))
    others = [
        task.first_needles(3),
        Task(task.needles, Haystack(["Yes. No."], plain), task.composer, task.grid),
        Task(task.needles, book, NeedleComposer(plain, "{context} {question}"), task.grid),
        Task(task.needles, book, task.composer, GridOptions((300,), (0.5,), seed=1)),
    ]
    described = [json.dumps(describe_task(one), sort_keys=True) for one in [task, *others]]
    assert len(set(described)) == 5


# ---- the official span finder


@pytest.mark.parametrize(("count", "early"), [(5, 0), (10, 0), (11, 1), (20, 1), (21, 2), (30, 2), (31, 3), (40, 3)])
def test_finding_the_span_by_set_overlap_is_off_on_long_needles_and_ours_is_exact(count, early):
    """Method card, section 4: the official window starts 1-3 tokens early on answers of more than 10 distinct tokens."""
    answer = " ".join(f"code{i}" for i in range(count))
    filler = " ".join(f"word{i}." for i in range(40))
    needle = Needle(f"The list is {answer}.", "What is the list?", answer, "The list is")
    encoder = PieceEncoder(word_tokenizer([filler, needle.needle, needle.question, "Question: Answer:"]))
    prompt = NeedleComposer(encoder).compose(Haystack([filler], encoder).window(60, (0,)), needle, 0.5)
    start, stop = prompt.span("answer")
    ids = prompt.ids[start:stop]
    assert encoder.decode(ids) == " " + answer
    assert len(set(ids)) == count
    assert official_span(prompt.ids, ids) == (start - early, stop - early)


def test_the_official_finder_returns_nonsense_where_ours_raises():
    assert official_span([1, 2, 3], [7, 8]) == (-1, -1)
