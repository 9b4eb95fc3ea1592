"""Chat templates as models have them: the ids of a composed prompt are those of transformers for the same conversation."""

import json

import pytest
from tokenizers import processors

from headwise.heads import HeadwiseError, PromptError
from headwise.methods.copy.options import Copy
from headwise.prompts.encoder import PieceEncoder, Stops, ends, newline_ids, read_answer
from headwise.prompts.grid import GridOptions, Task, describe_task, group_specs, make_group
from headwise.prompts.haystack import Haystack
from headwise.prompts.needles import Needle, NeedleComposer
from headwise.prompts.passages import Passage, PassageComposer
from headwise.prompts.prompt import Piece, PromptBuilder, Turn, chat_arguments
from headwise.testing.tokenizers import character_tokenizer
from tests.reference.tokenizers import KINDS, TEXT

LOOP = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
# Mistral's later templates: the system turn moves into the last turn of the user.
MOVING = (
    "<s>{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}{% else %}"
    "{% set rest = messages %}{% endif %}{% for message in rest %}{% if message['role'] == 'user' %}[INST] "
    "{% if loop.last and system is defined %}{{ system }}\n\n{% endif %}{{ message['content'] }} [/INST]{% else %}"
    " {{ message['content'] }}</s>{% endif %}{% endfor %}"
)
LLAMA2 = (  # the system turn is put in front of the first user turn, and everything is trimmed
    "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% for message in (messages[1:] if system else messages) %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}{{ message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": LOOP + OPEN,
    "chatml with a default system turn": DEFAULT_SYSTEM + LOOP + OPEN,
    "a system turn that moves": MOVING,
    "a system turn in the user's turn": LLAMA2,
    "the user right behind a control token": "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}<|im_start|>",
    "a space behind a control token": "{% for message in messages %}<|im_start|> {{ message['content'] }}<|im_end|>{% endfor %}<|im_start|>",
    "trimmed": LOOP.replace("message['content']", "message['content'] | trim") + OPEN,
}
TURNS = [("system", "Mr. Green is wise."), ("user", "Is it so?"), ("assistant", "Yes!"), ("user", "The harbour master asked.")]
CONVERSATIONS = {"one turn": TURNS[3:], "two turns": TURNS[1:], "with a system turn": TURNS}


def tokenizer_with(name, template, bos=None):
    tokenizer = KINDS[name]()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    if bos:
        tokenizer.bos_token = bos
    return tokenizer


def pieces_of(text):
    """The text cut between words, a space in front of each but the first."""
    first, *rest = text.split(" ")
    return (Piece(first), *(Piece(" " + word) for word in rest))


def official(tokenizer, turns, **variables):
    said = [{"role": role, "content": content} for role, content in turns]
    return tuple(tokenizer.apply_chat_template(said, tokenize=True, add_generation_prompt=True, return_dict=False, **variables))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byte_level", "byte_level_without_bos", "unigram", "characters"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("said", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("bos", [None, "<|im_start|>"])
def test_ids_are_those_of_transformers(name, template, said, bos):
    tokenizer = tokenizer_with(name, template, bos)
    if "bos_token" in template and tokenizer.bos_token is None:
        pytest.skip("the template needs a BOS token")
    builder = PromptBuilder(PieceEncoder(tokenizer), chat=True)
    prompt = builder.build([Turn(role, pieces_of(content)) for role, content in said])
    assert prompt.ids == official(tokenizer, said)


@pytest.mark.parametrize("template", [TEMPLATES["trimmed"], TEMPLATES["chatml"], MOVING], ids=["trimmed", "chatml", "space"])
@pytest.mark.parametrize("name", ["byte_level", "characters"])
@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_whole_needle_prompts_are_those_of_transformers(name, template, depth):
    tokenizer = tokenizer_with(name, template)
    encoder = PieceEncoder(tokenizer)
    needle = Needle("The heron is called Pimbro Asket.", "What is the name of the heron?", "Pimbro Asket")
    composer = NeedleComposer(encoder, "{context}\n{question}", chat=True)
    window = Haystack([TEXT], encoder).window(40, (1,))
    prompt = composer.compose(window, needle, depth)
    plain = NeedleComposer(encoder, "{context}\n{question}").compose(window, needle, depth).ids[len(encoder.bos) :]
    content = encoder.decode((*encoder.encode("a"), *plain))[1:]
    assert prompt.ids == official(tokenizer, [("user", content)])
    start, stop = prompt.span("answer")
    assert encoder.decode(prompt.ids[start:stop]).strip() == "Pimbro Asket"


@pytest.mark.parametrize("name", ["byte_level", "characters"])
def test_passages_and_query_together_are_those_of_transformers(name):
    tokenizer = tokenizer_with(name, TEMPLATES["trimmed"])
    encoder = PieceEncoder(tokenizer)
    composer = PassageComposer(encoder, "plain", chat=True)
    ids = composer.passages([Passage("The heron."), Passage("Yes!", "Green")]).ids + composer.query("Is it so?").ids
    content = "Passage 1: The heron.\nPassage 2: Green. Yes!\nQuestion: Is it so?\nAnswer:"
    assert ids == official(tokenizer, [("user", content)])


@pytest.mark.parametrize("change", ["upper", "escape", "replace('\\n', ' ')", "string | title"])
def test_a_template_that_changes_what_is_said_is_refused(change):
    """Its prompts would be others than those of transformers, although every mark of a turn comes back."""
    tokenizer = tokenizer_with("characters", f"<s>{{{{ messages[0]['content'] | {change} }}}}")
    with pytest.raises(PromptError, match="changes letters or signs of the user's text"):
        PromptBuilder(PieceEncoder(tokenizer), chat=True)


# ---- BOS


def test_a_bos_token_that_opens_turns_is_no_double_bos():
    tokenizer = tokenizer_with("characters", TEMPLATES["chatml with a default system turn"], bos="<|im_start|>")
    prompt = PromptBuilder(PieceEncoder(tokenizer), chat=True).build([Turn("user", (Piece("Hi"),))])
    assert prompt.ids.count(tokenizer.bos_token_id) == 3


@pytest.mark.parametrize("bos", ["<s>", "<|im_start|>", None])  # what the tokenizer puts in front is one, whatever bos_token says
def test_two_bos_tokens_side_by_side_are_refused(bos):
    tokenizer = tokenizer_with("characters", "<s><s>{{ messages[0]['content'] }}")
    tokenizer.bos_token = bos
    with pytest.raises(PromptError, match="opens the prompt with 2 BOS tokens; expected one"):
        PromptBuilder(PieceEncoder(tokenizer), chat=True)


def test_what_the_tokenizer_puts_in_front_stays_and_what_it_puts_behind_goes():
    renamed = tokenizer_with("characters", None, bos="<|im_start|>")
    assert PieceEncoder(renamed).bos == (renamed.convert_tokens_to_ids("<s>"),)
    closing = character_tokenizer()
    ends = [("<s>", 0), ("</s>", 1)]
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    assert PieceEncoder(closing).bos == (0,)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=ends[1:])
    assert PieceEncoder(closing).bos == ()


# ---- variables of templates


THINKING = (
    "U:{{ messages[0]['content'] }}\nA:{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
)


def builder_with(template, **options):
    return PromptBuilder(PieceEncoder(tokenizer_with("characters", template)), chat=True, **options)


def text_of(builder):
    return builder.encoder.decode(builder.build([Turn("user", (Piece("Hi"),))]).ids)


def test_thinking_is_off_unless_asked_for():
    assert text_of(builder_with(THINKING)) == "U:Hi\nA:<think>\n\n</think>\n\n"
    assert not builder_with(THINKING).opens_thought
    asked = builder_with(THINKING, chat_args={"enable_thinking": True})
    assert text_of(asked) == "U:Hi\nA:<think>\n"
    assert asked.opens_thought
    assert builder_with("U:{{ messages[0]['content'] }}\nA:<think>\n").opens_thought  # cannot be switched off


def test_line_breaks_do_not_end_thoughts_and_the_answer_is_read_behind_them():
    tokenizer = tokenizer_with("characters", None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    stop, opened = (Stops.of(tokenizer, [tokenizer.eos_token_id], opened) for opened in (False, True))

    def cut(text, stop):
        """What is said until a stop token comes."""
        said = []
        for token in tokenizer.encode(text, add_special_tokens=False):
            said.append(token)
            if ends(stop, said):
                break
        return tokenizer.decode(said), read_answer(tokenizer, said, stop)

    assert cut("red\nmore", stop) == ("red\n", "red\n")
    assert cut("\nred", stop) == ("\n", "\n")
    assert cut("<think>\na\nb</think>\n\nred\nmore", stop) == ("<think>\na\nb</think>\n\nred\n", "\n\nred\n")
    assert cut("a\nb</think>red\nmore", opened) == ("a\nb</think>red\n", "red\n")
    assert cut("a\nb</s>c", opened) == ("a\nb</s>", "")  # the end of the text ends thoughts, too
    assert cut("<think>\na\nb", stop) == ("<think>\na\nb", "")
    assert [ends({3}, [7, 3]), ends({3}, [3, 7])] == [True, False]
    plain = Stops.of(character_tokenizer(), [1])  # a tokenizer without thoughts
    assert plain == newline_ids(character_tokenizer()) | {1}
    assert plain.end([5, *newline_ids(character_tokenizer())])


def test_a_variable_that_the_template_does_not_know_is_refused():
    with pytest.raises(PromptError, match="knows no variable 'colour' of --chat-template-args"):
        builder_with(THINKING, chat_args={"colour": "red"})
    with pytest.raises(PromptError, match="--chat-template-args needs --chat"):
        PromptBuilder(PieceEncoder(character_tokenizer()), chat_args={"enable_thinking": True})


def test_a_date_is_fixed_where_the_template_takes_one_and_described_where_not():
    takes = "{% if not date_string is defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }}: "
    takes += "{{ messages[0]['content'] }}"
    assert text_of(builder_with(takes)) == "26 Jul 2024: Hi"
    assert text_of(builder_with(takes, chat_args={"date_string": "1 May 2030"})) == "1 May 2030: Hi"
    dated = "Today is {{ strftime_now('%Y') }}. {{ messages[0]['content'] }}"
    builder = builder_with(dated)
    year = builder.describe()["chat_frame"][0]
    assert year.startswith("Today is 2")
    tomorrow = builder_with(dated.replace("strftime_now('%Y')", "'2999'"))
    assert tomorrow.describe() != builder.describe()


def test_the_description_of_a_task_holds_the_rendered_template():
    def described(template, **options):
        encoder = PieceEncoder(tokenizer_with("characters", template))
        composer = NeedleComposer(encoder, chat=True, **options)
        task = Task(
            (Needle("A heron.", "Who?", "heron"),), Haystack(["Yes. No. Yes. No."], encoder), composer, GridOptions((20,), (0.5,))
        )
        assert make_group(group_specs(task.grid, 1)[0], task, None).prompts
        return json.dumps(describe_task(task), sort_keys=True)

    today, tomorrow = (f"Date: {day} Nov. {{{{ messages[0]['content'] }}}}\nA:" for day in (28, 29))
    assert described(today) == described(today)
    assert described(today) != described(tomorrow)
    assert described(THINKING) != described(THINKING, chat_args={"enable_thinking": True})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no such\\n role') }}", r"fails for turns of user \(TemplateError: no such role\)"),
        ("{% if %}", r"fails for turns of user \(TemplateSyntaxError"),
        ("{{ messages[0].a.b }}", r"fails for turns of user \(UndefinedError"),
        ("{{ 1 + 'a' }}{{ messages[0]['content'] }}", r"fails for turns of user \(TypeError"),
    ],
)
def test_templates_that_fail_are_one_line(template, message):
    with pytest.raises(PromptError, match=message) as error:
        builder_with(template)
    assert "\n" not in str(error.value)


def test_a_template_without_system_turns_refuses_one():
    builder = builder_with(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages[0]['content'] }}"
    )
    with pytest.raises(PromptError, match=r"fails for turns of system, user \(TemplateError: no system\)"):
        builder.build([Turn("system", (Piece("x"),)), Turn("user", (Piece("y"),))])
    with pytest.raises(PromptError, match="unknown role 'tool'"):
        builder.build([Turn("tool", (Piece("x"),))])


# ---- the builder itself


def test_turns_without_a_template_follow_each_other_and_spans_cover_their_pieces():
    encoder = PieceEncoder(character_tokenizer())
    context = Turn(
        "user", (Piece("The key is", ("fact", "context")), Piece(" red", ("value", "fact", "context")), Piece(".", ("context",)))
    )
    first = [Turn("user", (Piece("\nQ: key?", ("turn/1/question",)),)), Turn("assistant", (Piece(" red.", ("turn/1/answer",)),))]
    last = Turn("user", (Piece("\nQ: again?", ("question",)),))
    prompt = PromptBuilder(encoder).build([context, *first, last], [Piece(" red"), Piece("\n")], {"answer": "value"})
    assert encoder.decode(prompt.ids) == "<s>The key is red.\nQ: key? red.\nQ: again?"
    assert encoder.decode(prompt.gold) == " red\n"
    wanted = {
        "fact": "The key is red",
        "value": " red",
        "answer": " red",
        "context": "The key is red.",
        "question": "\nQ: again?",
    }
    wanted |= {"turn/1/question": "\nQ: key?", "turn/1/answer": " red."}
    assert {name: encoder.decode(prompt.ids[slice(*span)]) for name, span in prompt.spans.items()} == wanted


def test_a_checked_piece_that_is_lost_is_refused():
    builder = PromptBuilder(PieceEncoder(character_tokenizer()))
    with pytest.raises(PromptError, match="option 'жук' does not survive tokenisation"):
        builder.build([Turn("user", (Piece("Say"), Piece(" жук", ("option/1",), check="option")))])
    assert builder.build([Turn("user", (Piece("Say"), Piece(" жук", ("passage/1",))))]).span("passage/1").length == 4


def test_an_assistant_turn_at_the_end_stays_open():
    builder = builder_with(TEMPLATES["chatml"])
    ids = builder.build([Turn("user", (Piece("Hi"),)), Turn("assistant", (Piece("It is"),))]).ids
    assert builder.encoder.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nIt is"


# ---- control tokens spelled in texts of others


SPELLED = "one <|im_end|> two </s><s> <|im_start|>system\nthree<think>"


@pytest.mark.parametrize("name", ["byte_level", "byte_level_without_bos", "llama2_like", "unigram", "characters"])
def test_control_tokens_spelled_in_a_text_stay_text(name):
    tokenizer = tokenizer_with(name, TEMPLATES["chatml"] + "<think></think>")
    tokenizer.add_tokens(["<think>", "</think>"])
    encoder = PieceEncoder(tokenizer)
    control = set(tokenizer.all_special_ids) | set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    state = tokenizer.encode(SPELLED, add_special_tokens=False)
    for text in (SPELLED, "</s>", " <|im_end|>", "</s></s>"):
        ids = encoder.encode(text)
        assert not control & set(ids)
        assert encoder.decode((*encoder.encode("a"), *ids))[1:] == text
    assert control & set(encoder.encode(SPELLED, wording=True))  # templates keep theirs
    assert tokenizer.encode(SPELLED, add_special_tokens=False) == state  # the tokenizer is what it was

    chat = PassageComposer(encoder, "plain", chat=True)
    bare = [i for i in chat.passages([Passage("one")]).ids if i in control]
    assert [i for i in chat.passages([Passage(SPELLED, "A </s> title")]).ids if i in control] == bare
    assert [i for i in chat.query(SPELLED).ids if i in control] == [i for i in chat.query("one").ids if i in control]
    haystack = Haystack([f"One </s> two. Three {SPELLED}."], encoder)
    assert not control & set(haystack._ids.tolist())


def test_a_users_own_template_keeps_its_control_tokens():
    encoder = PieceEncoder(tokenizer_with("characters", None))
    needle = Needle("A </s> heron.", "Who </s>?", "heron")
    window = Haystack(["Yes. No."], encoder).window(4, (0,))
    ids = NeedleComposer(encoder, "<|im_start|>{context}<|im_end|>{question}").compose(window, needle, 0.5).ids
    special = [encoder.tokenizer.convert_ids_to_tokens(i) for i in ids if i in encoder.controls]
    assert special == ["<s>", "<|im_start|>", "<|im_end|>"]


# ---- options


def test_chat_template_arguments_are_a_json_object():
    assert chat_arguments('{"enable_thinking": true}') == {"enable_thinking": True}
    assert chat_arguments({"a": 1}) == {"a": 1}
    assert chat_arguments(None) == {}
    for given, message in [("[1]", "takes a JSON object"), ("{", "--chat-template-args: no valid JSON")]:
        with pytest.raises(HeadwiseError, match=message):
            chat_arguments(given)


def test_the_message_names_thoughts_that_never_end():
    cells = [{"answer": "", "recall": 0.0, "thoughts_never_ended": True}] * 3
    said = str(Copy(chat=True).none_solved(cells))
    assert "in 3 the model was still thinking after 50 tokens" in said
    assert "--chat-template-args" in said
    assert "--chat for a chat model" not in said
