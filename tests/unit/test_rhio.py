"""RHIO: filters on planted texts, answers of a planted model, a run that is killed, and a toy that learns two ways to answer."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import headwise as hw
from headwise.attention.ablate import ablate
from headwise.evaluation.decoders import contrastive_decoder
from headwise.evaluation.support import LexicalOverlap
from headwise.heads.errors import HeadwiseError, PromptError
from headwise.methods.rhio import run as rhio_run
from headwise.methods.rhio.file import PairRow, lines_of, read_pairs
from headwise.methods.rhio.filters import FAITHFUL, UNLIKE, Pair, Said, check_gap, distinct_share, kept_pairs, unreadable
from headwise.methods.rhio.options import UnfaithfulOptions
from headwise.methods.rhio.run import describe_unfaithful, unfaithful_pairs
from headwise.prompts.control import check_control, control_ids, with_control
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grounded import GroundedRecord
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.passages import Passage
from headwise.prompts.prompt import Piece, Prompt, PromptBuilder, Span, Turn
from headwise.runtime.answer import stop_ids
from headwise.runtime.batches import drawn_answers, greedy_answers
from headwise.runtime.branches import Without
from headwise.runtime.control import control_prompts
from headwise.runtime.rundir import RunDirectory
from headwise.stats.metrics import units
from headwise.testing.planted_records import planted_records
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise.train.control import with_control_tokens
from headwise.train.lora import with_lora
from headwise.train.objectives import AnswerLoss
from headwise.train.options import Tuning
from headwise.train.rhio import control_examples
from headwise.train.tuning import tune

RECORD = GroundedRecord("who", (Passage("Ada Low built the mill."),), ("Ada Low built the mill.",))
GOOD = Said("Bo Hay built it then.", 0.2, 10, 1.0)
RULES = UnfaithfulOptions(match="none")


def pairs_of(*unfaithful, faithful=Said("Ada Low built the mill.", 1.0, 10, 1.0)):
    return [Pair(RECORD, faithful, one) for one in unfaithful]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (GOOD, ""),
        (GOOD._replace(text=""), "empty"),
        (GOOD._replace(ended=False), "truncated"),
        (GOOD._replace(text="the mill the mill the mill the mill the mill"), "repetitive"),
        (GOOD._replace(text="the mill the mill the"), ""),  # 2 of 3 triples are distinct
        (GOOD._replace(tokens=0), "no text that can follow the prompt"),
    ],
)
def test_texts_that_nothing_can_be_learnt_from_are_dropped(said, reason):
    assert unreadable(said, RULES) == reason
    assert kept_pairs(pairs_of(GOOD, said), RULES).counts == ({reason: 1} if reason else {})


def test_answers_that_are_faithful_all_the_same_are_dropped():
    kept = kept_pairs(pairs_of(GOOD, GOOD._replace(support=0.9), GOOD._replace(support=0.89)), RULES)
    assert [pair.unfaithful.support for pair in kept.pairs] == [0.2, 0.89]
    assert kept.counts == {FAITHFUL: 1}
    assert kept_pairs(pairs_of(GOOD, GOOD._replace(support=0.3)), replace(RULES, most_support=0.25)).counts == {FAITHFUL: 1}


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
def test_the_share_of_distinct_word_groups_is_that_of_a_loop(words, n):
    text, seen, count = " ".join(words), [], 0
    for start in range(len(units(text)) - n + 1):
        gram = units(text)[start : start + n]
        count += 1
        if gram not in seen:
            seen.append(gram)
    assert distinct_share(text, n) == (len(seen) / count if count else 1.0)


@pytest.mark.parametrize("match", ["both", "length", "loss", "none"])
def test_kept_answers_are_as_long_and_as_likely_as_the_references(match):
    rng = np.random.default_rng(1)
    made = [
        Pair(
            RECORD,
            Said("Ada Low built the mill.", 1.0, int(rng.integers(5, 30)), float(rng.random())),
            GOOD._replace(tokens=int(rng.integers(1, 40)), loss=float(2 * rng.random())),
        )
        for _ in range(60)
    ]
    kept = kept_pairs(made, replace(RULES, match=match, central=0.8))
    expected = []
    for pair in made:
        fits = True
        for name, used in (("tokens", match in ("both", "length")), ("loss", match in ("both", "loss"))):
            values = sorted(getattr(one.faithful, name) for one in made)
            low, high = np.interp([0.1 * 59, 0.9 * 59], range(60), values)
            assert kept.ranges[name] == pytest.approx((low, high))
            fits = fits and (not used or low <= getattr(pair.unfaithful, name) <= high)
        if fits:
            expected.append(pair)
    assert list(kept.pairs) == expected
    assert sum(kept.counts.values()) == 60 - len(expected)
    assert set(kept.counts) == {UNLIKE[name] for name in {"both": ("tokens", "loss"), "length": ("tokens",), "loss": ("loss",)}.get(match, ())}
    assert kept.table["after"]["tokens"] == pytest.approx(np.mean([pair.unfaithful.tokens for pair in expected]))
    assert kept.table["before"]["answers"] == kept.table["references"]["answers"] == 60


def test_too_small_a_gap_is_refused_with_both_numbers():
    with pytest.raises(HeadwiseError, match=r"references is 100.0% and that of all unfaithful answers 95.0%: a gap under 10 points"):
        kept_pairs(pairs_of(GOOD._replace(support=0.95)), RULES)
    weak = Said("Ada Low built the mill.", 0.5, 10, 1.0)
    pairs = [*pairs_of(GOOD._replace(support=0.0, tokens=90), faithful=weak), *pairs_of(GOOD._replace(support=0.45), faithful=weak)]
    with pytest.raises(HeadwiseError, match=r"references is 50.0% and that of the unfaithful answers that are kept 45.0%"):
        kept_pairs(pairs, UnfaithfulOptions())
    assert len(kept_pairs(pairs, UnfaithfulOptions(least_gap=0.05)).pairs) == 1
    check_gap(pairs, 0.2, "them")
    with pytest.raises(HeadwiseError, match=r"none of 2 unfaithful answers is left \(empty: 2\); take away fewer heads"):
        kept_pairs(pairs_of(*[GOOD._replace(text="")] * 2), RULES)


@pytest.mark.parametrize(
    ("said", "advice"),
    [(GOOD._replace(ended=False), "allow more new tokens"), (GOOD._replace(support=1.0), "take away more heads"),
     (GOOD._replace(tokens=99), "match less closely")],
)  # fmt: skip
def test_where_nothing_is_left_the_most_frequent_reason_gives_the_advice(said, advice):
    with pytest.raises(HeadwiseError, match=advice):
        kept_pairs(pairs_of(said, said, GOOD._replace(text="")), UnfaithfulOptions(least_gap=0.0))


@pytest.mark.parametrize("wrong", [{"match": "all"}, {"central": 0.0}, {"least_gap": 2.0}, {"temperature": -1.0}, {"max_new_tokens": 0}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(HeadwiseError):
        UnfaithfulOptions(**wrong)


@pytest.fixture(scope="module")
def planted():
    """A model whose head L1H2 copies, and questions whose references it copies."""
    model, records = planted_records(24)
    made = [
        GroundedRecord(r.question, (Passage(f"{r.passage.text}\nAnswer: {said} ."),), (f"{said} .",), name=r.name)
        for r, said in ((r, f"{r.question} {r.answers[0]}") for r in records[:5])
    ]
    return model, made, GroundedComposer(PieceEncoder(model.tokenizer))


def made_of(planted, without, records=None, **options):
    model, own, composer = planted
    return unfaithful_pairs(model, records or own, composer, LexicalOverlap(), without, UnfaithfulOptions(max_new_tokens=24, **options))


@pytest.mark.parametrize("scope", ["all", "answer"])
def test_the_planted_head_is_what_the_answer_rests_on(planted, scope):
    pairs, dropped = made_of(planted, Without([(1, 2)], scope=scope))
    assert dropped == {}
    assert [pair.unfaithful.text for pair in pairs] == [""] * 5
    others, _ = made_of(planted, Without([(1, 0), (1, 1), (1, 3)], scope=scope))
    for record, pair in zip(planted[1], others, strict=True):  # copied as with all heads
        assert record.references[0].startswith(pair.unfaithful.text)
        assert pair.unfaithful.text.startswith(record.question)
    assert {pair.unfaithful.support for pair in others} == {1.0}
    with pytest.raises(HeadwiseError, match="a gap under 10 points"):
        kept_pairs(others, RULES)


@pytest.mark.parametrize("mode", ["zero", "uniform"])
@torch.no_grad()
@pytest.mark.slow
def test_answers_and_losses_are_those_of_one_question_alone(mode):
    model = hw.Model(tiny_model("llama"), character_tokenizer())
    composer = GroundedComposer(PieceEncoder(model.tokenizer))
    records = [GroundedRecord("who" * n, (Passage("Ada Low " * n),), ("Ada Low",)) for n in (1, 3, 2)]
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    pairs, _ = made_of((model, records, composer), Without([(1, 3), (2, 0)], mode, "all"))
    answers = []
    for record, pair in zip(records, pairs, strict=True):
        prompt = composer.opened(record).ids
        ids = torch.tensor([prompt])
        with ablate(model, [(1, 3), (2, 0)], mode):
            said = list(prompt)
            for _ in range(24):
                said.append(int(model.hf(torch.tensor([said])).logits[0, -1].argmax()))
        answers.append(said)
        assert pair.unfaithful.text == model.tokenizer.decode(said[len(prompt) :]).strip()
        assert not pair.unfaithful.ended
        own = model.tokenizer.encode(" Ada Low", add_special_tokens=False)
        logits = model.hf(torch.cat([ids, torch.tensor([own])], dim=1)).logits[0].log_softmax(-1)
        losses = [-float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(own)]
        assert (pair.faithful.tokens, pair.faithful.loss) == (len(own), pytest.approx(sum(losses) / len(losses), rel=1e-4))
    whole = greedy_answers(model.hf, [composer.opened(record).ids for record in records], [24] * 3, ())
    assert [tuple(said[-24:]) for said in answers] != whole  # the heads matter
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())


def test_records_that_cannot_be_used_are_counted(planted):
    good = planted[1][0]
    bad = [
        replace(good, references=()),
        replace(good, answerable=False),
        replace(good, documents=()),
        replace(good, references=(" ".join(["is"] * 30),)),
        replace(good, documents=(Passage("is " * 2000),)),
    ]
    pairs, dropped = made_of(planted, None, [good, *bad])
    assert len(pairs) == 1
    assert dropped == dict.fromkeys(
        ["no reference answer", "not answered by its documents", "no documents", "a reference longer than max_new_tokens"]
        + ["longer than the model's context"],
        1,
    )
    with pytest.raises(HeadwiseError, match=r"none of 1 questions can be used \(no documents: 1\)"):
        made_of(planted, None, [bad[2]])
    with pytest.raises(HeadwiseError, match="no heads are taken away"):
        made_of(planted, Without([]))


def test_a_swap_takes_the_answer_of_another_question_that_the_documents_do_not_mention(planted):
    model, _, composer = planted
    names = ["Ada Low", "Bo Hay", "Cy Fox", "Di Lee"]
    records = [GroundedRecord("who", (Passage(f"{name} and Cy Fox did."),), (name,)) for name in names]
    pairs, _ = made_of((model, records, composer), None)
    for record, pair in zip(records, pairs, strict=True):
        assert pair.unfaithful.text in set(names) - {record.references[0], "Cy Fox"}
    again, _ = made_of((model, records, composer), None)
    assert again == pairs
    assert [one.unfaithful for one in made_of((model, records, composer), None, seed=3)[0]] != [one.unfaithful for one in pairs]


def test_draws_of_a_prompt_do_not_depend_on_the_others(planted):
    model, records, composer = planted
    maker = rhio_run._Maker(model, composer, LexicalOverlap(), UnfaithfulOptions(temperature=5.0, max_new_tokens=8), None)
    prompts = [composer.opened(record).ids for record in records[:3]]
    together = drawn_answers(model.hf, prompts, [8] * 3, (), [maker._draw(i) for i in range(3)])
    alone = [drawn_answers(model.hf, [prompt], [8], (), [maker._draw(i)])[0] for i, prompt in enumerate(prompts)]
    assert together == alone
    assert together != greedy_answers(model.hf, prompts, [8] * 3, ())
    assert maker.ablated(records[:3], 0) == maker.ablated(records[:3], 0) != maker.ablated(records[:3], 5)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(planted, tmp_path, monkeypatch):
    model, records, composer = planted
    monkeypatch.setattr(rhio_run, "CHUNK", 2)
    options, without = UnfaithfulOptions(max_new_tokens=12, temperature=4.0, top_p=0.9), Without([(1, 2)], scope="all")

    def run(name, report=lambda *_: None):
        told = describe_unfaithful(model, records, composer, LexicalOverlap(), without, options)
        directory = RunDirectory(tmp_path / name, told)
        return lines_of(unfaithful_pairs(model, records, composer, LexicalOverlap(), without, options, directory, report)[0])

    whole = run("whole")
    asked = []
    drawn = rhio_run.drawn_answers
    monkeypatch.setattr(rhio_run, "drawn_answers", lambda *given: asked.append(len(given[1])) or drawn(*given))

    def kill(done, total, remark):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("killed", kill)
    assert asked == [2, 2]
    assert run("killed") == whole
    assert asked == [2, 2, 1]
    with pytest.raises(HeadwiseError, match="belongs to a run with other options"):
        RunDirectory(tmp_path / "killed", describe_unfaithful(model, records, composer, LexicalOverlap(), None, options))


def test_pairs_are_read_back(tmp_path):
    (tmp_path / "n.jsonl").write_bytes(lines_of([Pair(replace(RECORD, name="r"), Said(RECORD.references[0], 1.0, 3, 1.0), GOOD)]))
    assert read_pairs(tmp_path / "n.jsonl") == [PairRow("who", RECORD.documents, RECORD.references[0], GOOD.text, "r")]
    assert json.loads((tmp_path / "n.jsonl").read_text())["unfaithful_support"] == 0.2


ROW = {"question": "q", "documents": ["d"], "faithful": "a", "unfaithful": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("", "holds no pairs"),
        (3, "line 1: expected"),
        (ROW | {"documents": "d"}, "expected"),
        (ROW | {"documents": []}, "there are no documents"),
        (ROW | {"faithful": " "}, "faithful is empty"),
        (ROW | {"unfaithful": "a "}, "both answers are the same"),
    ],
)
def test_wrong_pairs_are_refused_with_their_place(tmp_path, row, message):
    (tmp_path / "n.jsonl").write_text(row if row == "" else json.dumps(row))
    with pytest.raises(PromptError, match=message):
        read_pairs(tmp_path / "n.jsonl")


def small():
    """A tiny model with control tokens and a composer for it."""
    model = with_control_tokens(hw.Model(tiny_model("llama"), character_tokenizer()))
    return model, GroundedComposer(PieceEncoder(model.tokenizer))


def test_a_token_stands_in_front_and_spans_move_with_their_words():
    prompt = Prompt((7, 8, 9, 10), {"all": Span(0, 4), "head": Span(0, 2), "word": Span(2, 3)}, (5,))
    made = with_control(prompt, 99, (7, 8))
    assert made == Prompt((7, 8, 99, 9, 10), {"all": Span(0, 5), "head": Span(0, 2), "word": Span(3, 4)}, (5,))
    assert with_control(prompt, 99, ()).ids == (99, 7, 8, 9, 10)
    assert with_control(prompt, 99, (7, 1)).ids == (7, 99, 8, 9, 10)  # a space that went into the next word


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.lists(st.integers(0, 3), max_size=4), st.data())
def test_a_token_changes_nothing_but_its_place(ids, head, data):
    start = data.draw(st.integers(0, len(ids) - 1))
    span = Span(start, data.draw(st.integers(start + 1, len(ids))))
    made = with_control(Prompt(tuple(ids), {"words": span}), 99, head)
    place = made.ids.index(99)
    assert list(made.ids[:place] + made.ids[place + 1 :]) == ids
    assert ids[:place] == head[:place]
    moved = made.spans["words"]
    assert [i for i in made.ids[moved.start : moved.stop] if i != 99] == ids[span.start : span.stop]
    assert (99 in made.ids[moved.start : moved.stop]) == (span.start < place < span.stop)


TEMPLATE = "<s>user: {% for m in messages %}{{ m.content CHANGE }}{% endfor %} bot:"


def test_in_a_chat_template_the_token_stands_in_front_of_what_the_user_says():
    model, _ = small()
    model.tokenizer.chat_template = TEMPLATE.replace("CHANGE", "")
    builder = PromptBuilder(PieceEncoder(model.tokenizer), chat=True)
    check_control(builder)
    prompt = builder.build([Turn("user", (Piece("who"),))])
    faithful, unfaithful = control_prompts(model, prompt, builder.head)
    assert model.tokenizer.decode(faithful) == "<s>user: [POS]who bot:"
    assert [a for a, b in zip(faithful, unfaithful, strict=True) if a != b] == [control_ids(model.tokenizer)[0]]
    model.tokenizer.chat_template = TEMPLATE.replace("CHANGE", "| replace('[POS]', '')")
    with pytest.raises(PromptError, match=r"strips the control token \[POS\] from what a user says"):
        check_control(PromptBuilder(PieceEncoder(model.tokenizer), chat=True))


def test_examples_are_both_answers_behind_their_tokens():
    model, composer = small()
    rows = [PairRow("who", (Passage("Ada"),), "Ada", "Bo"), PairRow("who", (Passage("Ada " * 60),), "Ada", "Bo")]
    made = control_examples(model, rows, composer, 80)
    assert made.counts == {"too_long": 1, "cannot_follow": 0}
    texts = [model.tokenizer.decode(one.ids) for one in made.examples]
    words = "Passage 1: Ada\nQuestion: who\nAnswer:"
    assert texts == [f"<s>[POS]{words} Ada\n</s>", f"<s>[NEG]{words} Bo\n</s>"]
    for one in made.examples:
        assert model.tokenizer.decode(one.ids[one.asks.start : one.asks.stop]).strip() == "who\nAnswer:"
        assert model.tokenizer.decode(one.ids[one.answer :]) in (" Ada\n</s>", " Bo\n</s>")
    plain = control_examples(model, rows, composer, 80, plain=True)
    assert [model.tokenizer.decode(one.ids) for one in plain.examples] == [f"<s>{words} Ada\n</s>"]
    exact = len(made.examples[0].ids)
    for kind in (False, True):  # both runs learn from the same pairs
        assert len(control_examples(model, rows[:1], composer, exact, kind).examples) == 2 - kind
        with pytest.raises(HeadwiseError, match="none of 1 pairs can be trained on"):
            control_examples(model, rows[:1], composer, exact - 1, kind)
    with pytest.raises(HeadwiseError, match="no control token"):
        control_examples(hw.Model(tiny_model("llama"), character_tokenizer()), rows, composer, 80)


@pytest.mark.slow
def test_a_toy_learns_which_answer_follows_which_token():
    model, composer = small()
    rows = [PairRow(f"who {name}", (Passage(f"{name} x"),), "x", "y") for name in "abcd"]
    examples = control_examples(model, rows, composer, 80).examples
    asked = [tuple(control_prompts(model, composer.opened(GroundedRecord("who e", (Passage("e x"),)))))[i] for i in (0, 1)]
    space, faithful = model.tokenizer.encode(" x", add_special_tokens=False)

    def share():
        ids = torch.tensor([[*prompt, space] for prompt in asked])
        with torch.no_grad():
            return model.hf(ids).logits[:, -1].softmax(dim=-1)[:, faithful].tolist()

    before = share()
    options = Tuning(steps=30, batch=4, accumulate=1, rate=1e-2, rank=8, warmup=0.1)
    tune(with_lora(model, options, tokens=control_ids(model.tokenizer)), examples, AnswerLoss(), options)
    behind = share()
    assert abs(before[0] - before[1]) < 0.02
    assert behind[0] - behind[1] > 0.5


@pytest.mark.parametrize("rule", [{"alpha": 0.7}, {"combine": "adaptive"}, {"combine": "routed", "plausibility": 0.1}])
def test_decoders_say_what_direct_calls_say(rule):
    model, composer = small()
    record = GroundedRecord("who", (Passage("Ada Low"),))
    prompt, closed = composer.opened(record), composer.closed(record)
    stop = stop_ids(model)
    direct = {
        "closed": hw.contrastive_generate(model, prompt, closed, **rule, max_new_tokens=12),
        "control": hw.contrastive_generate(model, *control_prompts(model, prompt), **rule, max_new_tokens=12),
        "heads": hw.contrastive_generate(model, prompt, Without([(1, 2)]), **rule, max_new_tokens=12),
    }
    for name, made in direct.items():
        negative = Without([(1, 2)]) if name == "heads" else name
        said = contrastive_decoder(model, stop, 12, negative, composer.builder.head, **rule)(prompt, closed)
        cut = next((i + 1 for i, token in enumerate(made.ids) if token in stop), 12)
        assert said == made.ids[:cut]
    early = contrastive_decoder(model, (direct["closed"].ids[2],), 12, "closed", **rule)(prompt, closed)
    assert early == direct["closed"].ids[: direct["closed"].ids.index(direct["closed"].ids[2]) + 1]
    with pytest.raises(HeadwiseError, match="unknown negative branch 'open'"):
        contrastive_decoder(model, stop, 12, "open")


def test_control_prompts_of_a_model_without_tokens_are_refused():
    with pytest.raises(HeadwiseError, match=r"no control token \[POS\]"):
        control_prompts(hw.Model(tiny_model("llama"), character_tokenizer()), "who")


def test_a_prompt_with_a_control_token_is_refused():
    model = with_control_tokens(hw.Model(tiny_model("llama"), character_tokenizer()))
    with pytest.raises(HeadwiseError, match=r"holds the control token \[NEG\] already"):
        control_prompts(model, "[NEG]who")
