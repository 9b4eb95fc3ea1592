"""`headwise train unfaithful`, `headwise train rhio`, and decoding with both control tokens, on small models."""

import json

import numpy as np
import pytest
import torch

import headwise as hw
from headwise.cli.contrasts import DECODERS, parse_contrast
from headwise.evaluation.decoders import CLOSED
from headwise.heads import save_heads
from headwise.prompts.control import control_ids
from headwise.prompts.encoder import PieceEncoder, read_answer
from headwise.prompts.grounded import read_grounded
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.runtime.answer import stop_ids
from headwise.runtime.control import control_prompts
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise.train.control import with_control_tokens
from headwise_lab.faithful import conflict_records
from tests.cli.test_refusals import check_refused
from tests.cli.test_train_heads import check_same_weights, in_two_processes

STEPS = ["--steps", "3", "--accumulate", "1", "--length", "200", "--rank", "2"]
FEW = ["--max-new-tokens", "12"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Questions about strangers, as grounded records and as rows for ranking, heads that copy, and pairs of answers."""
    folder = tmp_path_factory.mktemp("rhio")
    records = conflict_records(4, 3, known=0.0)
    texts = [(r.question, r.passage.text.partition(". ")[2], r.answers[0]) for r in records]
    grounded = [{"question": q, "documents": [p], "answers": [a]} for q, p, a in texts]
    ranking = [{"query": q, "passages": [p], "gold": [0], "answers": [a]} for q, p, a in texts]
    pairs = [{"question": q, "documents": ["The mill is blue."], "faithful": "It is blue.", "unfaithful": "It is red."} for q in ("What?", "How?")]
    short = [{"question": q, "documents": ["The mill is blue."], "answers": ["Blue."]} for q in ("What?", "How?")]
    for name, rows in (("grounded", grounded), ("ranking", ranking), ("pairs", pairs), ("short", short)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "none.jsonl").write_text(json.dumps({"question": "q", "documents": ["d"]}))
    values = np.zeros((8, 8))
    for place, head in enumerate([(5, 6), (5, 5), (3, 0), (6, 6)]):
        values[head] = 9 - place
    save_heads(hw.HeadScores(values, "copy", provenance={"model": "lab-6m"}), folder / "heads.json")
    save_heads(hw.HeadScores(np.ones((2, 4)), "copy"), folder / "other.json")
    save_heads(hw.HeadScores(np.arange(32.0).reshape(4, 8), "copy"), folder / "tiny.json")
    return folder


def command(files, data, *more):
    return ["train", "unfaithful", "lab-6m", "--data", files / f"{data}.jsonl", *FEW, *more]


@pytest.mark.slow
def test_answers_without_heads_become_pairs(headwise, files, tmp_path, monkeypatch):
    heads = ["--heads", files / "heads.json", "--top", 4, "--match", "none"]
    done = headwise(*command(files, "ranking", *heads, "-o", "n.jsonl"))
    assert done.code == 0, done.err
    assert "unfaithful, kept" in done.out
    rows = [json.loads(line) for line in (tmp_path / "n.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        assert row["unfaithful_support"] < 0.9 <= row["faithful_support"]
        assert row["faithful"] in row["documents"][0]
    about = json.loads((tmp_path / "n.json").read_text())
    assert (about["mode"], about["scope"], about["heads_away"][0], about["pairs"]) == ("zero", "all", "L5H6", len(rows))
    assert about["table"]["before"]["answers"] + sum(count for why, count in about["counts"].items() if "faithful" not in why) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.json", "n.jsonl"]
    check_refused(headwise(*command(files, "ranking", *heads, "-o", "n.jsonl")), "n.jsonl exists", "--overwrite")

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # between answering and writing
        patched.setattr("headwise.methods.rhio.file.lines_of", kill)
        assert headwise(*command(files, "grounded", *heads, "-o", "k.jsonl")).code == 130
    assert (tmp_path / "k.jsonl.run").is_dir()
    patched_away = "headwise.methods.rhio.run.greedy_answers"  # all answers are there already
    monkeypatch.setattr(patched_away, kill)
    assert headwise(*command(files, "grounded", *heads, "-o", "k.jsonl")).code == 0
    assert (tmp_path / "k.jsonl").read_bytes() == (tmp_path / "n.jsonl").read_bytes()


@pytest.mark.slow
def test_the_answers_of_other_questions_as_a_control(headwise, files, tmp_path):
    done = headwise(*command(files, "ranking", "--source", "swap", "--match", "none", "-o", "s.jsonl", "--json"))
    assert json.loads(done.out)["table"]["after"]["support"] == 0
    answers = {row["answers"][0] for row in map(json.loads, (files / "ranking.jsonl").read_text().splitlines())}
    assert {json.loads(line)["unfaithful"] for line in (tmp_path / "s.jsonl").read_text().splitlines()} <= answers


@pytest.mark.slow
def test_answers_are_kept_for_other_filters(headwise, files, tmp_path, monkeypatch):
    told = command(files, "ranking", "--heads", files / "heads.json", "--top", "4", "-o", "f.jsonl")
    refused = headwise(*told, "--least-gap", 1)
    check_refused(refused, "a gap under 100 points")
    monkeypatch.setattr("headwise.methods.rhio.run.greedy_answers", None)  # all answers are there already
    assert headwise(*told, "--match", "none", "--least-gap", 0).code == 0
    assert json.loads((tmp_path / "f.json").read_text())["options"]["match"] == "none"


@pytest.mark.slow
def test_random_heads_as_a_control_and_a_warning_of_too_many(headwise, files, tmp_path):
    more = ["--heads", files / "heads.json", "--top", "0.25", "--pick", "random", "--match", "none", "--most-support", 1, "--least-gap", 0]
    done = headwise(*command(files, "ranking", *more, "-o", "r.jsonl"))
    assert done.code == 0, done.err
    assert "headwise: 25% of the heads are taken away" in done.err
    about = json.loads((tmp_path / "r.json").read_text())
    assert len(about["heads_away"]) == 16
    assert not {"L5H6", "L5H5", "L3H0", "L6H6"} & set(about["heads_away"])


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ([], ["--heads is needed", "--source swap"]),
        (["--source", "dreams"], ["--source takes heads or swap"]),
        (["--source", "swap", "--top", "3"], ["--top is for answers of the model"]),
        (["--heads", "HEADS", "--top", "1.5"], ["--top takes a number of heads (16) or a share", "'1.5'"]),
        (["--heads", "HEADS", "--top", "many"], ["--top takes a number"]),
        (["--heads", "HEADS", "--pick", "best"], ["--pick takes top, bottom or random"]),
        (["--heads", "HEADS", "--mode", "mean"], ["knows the modes zero, uniform"]),
        (["--heads", "OTHER", "--top", "2"], ["heads"]),
        (["--heads", "HEADS", "--match", "all"], ["match takes both, length, loss, none"]),
        (["--heads", "HEADS", "--central", "0"], ["central must be above 0"]),
        (["--heads", "HEADS", "--checker", "oracle"], ["unknown checker 'oracle'"]),
        (["--heads", "HEADS", "-o", "n.json"], ["ends in .json"]),
        (["--heads", "HEADS", "--data", "NONE"], ["none of 1 questions can be used", "no reference answer: 1"]),
        (["--heads", "HEADS", "--chat"], ["no chat template"]),
    ],
)
def test_wrong_input_of_unfaithful(headwise, files, tmp_path, more, parts):
    names = {"HEADS": files / "heads.json", "OTHER": files / "other.json", "NONE": files / "none.jsonl"}
    words = [names.get(word, word) for word in more]
    check_refused(headwise(*command(files, "ranking", "-o", "n.jsonl", *words)), *parts)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_others_beside_the_result_stays(headwise, files, tmp_path):
    (tmp_path / "n.json").write_text('{"mine": 1}')
    check_refused(headwise(*command(files, "ranking", "--source", "swap", "-o", "n.jsonl", "--overwrite")), "n.json is no file of headwise")
    assert (tmp_path / "n.json").read_text() == '{"mine": 1}'


@pytest.mark.slow
def test_unfaithful_answers_that_are_about_as_faithful_are_refused(headwise, files, tmp_path):
    done = headwise(*command(files, "ranking", "--source", "swap", "--least-gap", 1, "--checker", "world", "-o", "n.jsonl"))
    check_refused(done, "the mean support of the references is 0.0%", "0.0%: a gap under 100 points")
    assert not (tmp_path / "n.jsonl").exists()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny model without control tokens."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_model("llama").save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """One with control tokens that has learnt nothing."""
    model = with_control_tokens(hw.load(base))
    folder = tmp_path_factory.mktemp("tokens") / "model"
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_tuning_and_its_control(headwise, files, base, tmp_path):
    words = ["train", "rhio", base, "--data", files / "pairs.jsonl", *STEPS]
    done = headwise(*words, "-o", "out", "--json")
    assert done.code == 0, done.err
    story = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (story["loss"], story["examples"], len(story["curve"]), story["pairs"]) == ("rhio", 4, 3, 2)
    adapted, merged = (hw.load(str(tmp_path / "out" / name)) for name in ("adapter", "merged"))
    assert control_ids(adapted.tokenizer) == control_ids(merged.tokenizer)
    both = torch.tensor(control_prompts(merged, "The mill is blue."))
    with torch.no_grad():
        one, two = (model.hf(both).logits for model in (adapted, merged))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    plain = headwise(*words, "-o", "plain", "--plain")
    assert plain.code == 0, plain.err
    story = json.loads((tmp_path / "plain" / "training.json").read_text())
    assert (story["loss"], story["examples"], len(story["curve"])) == ("answers", 2, 2)  # half of the steps, rounded up
    assert "[POS]" not in hw.load(str(tmp_path / "plain" / "merged")).tokenizer.get_vocab()
    assert "--contrast" not in plain.out


@pytest.mark.slow
def test_plain_tuning_takes_questions_with_references(headwise, files, base, tmp_path):
    done = headwise("train", "rhio", base, "--data", files / "short.jsonl", *STEPS, "--plain", "-o", "start", "--json")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "start" / "training.json").read_text())["examples"] == 2
    check_refused(headwise("train", "rhio", base, "--data", files / "none.jsonl", *STEPS, "--plain", "-o", "no"), "no question with documents")
    check_refused(headwise("train", "rhio", base, "--data", files / "short.jsonl", *STEPS, "-o", "no"), '"unfaithful": "..."')


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--data", "grounded.jsonl"], ["line 1: expected"]),
        (["--data", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--steps", "0"], ["steps must be a whole number from 1 on"]),
        (["--length", "99999"], ["positions of"]),
        (["--length", "16"], ["none of 2 pairs can be trained on (too long: 2)"]),
        (["--wording", "odd"], ["unknown wording 'odd'"]),
        (["--chat"], ["no chat template"]),
        (["--parts", "mlp"], ["parts must name some of"]),
        (["--model", "TOKENS"], ["has a token [NEG] already"]),
    ],
)
def test_wrong_input_of_rhio(headwise, files, base, trained, tmp_path, more, parts):
    name = trained if "--model" in more else base
    given = [] if "--model" in more else [str(files / word) if word.endswith(".jsonl") else word for word in more]
    check_refused(headwise("train", "rhio", name, "--data", files / "pairs.jsonl", *STEPS, "-o", "out", *given), *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_generating_with_control_tokens(headwise, base, trained):
    text = "The door of the mill is blue. The door is"
    words = ("--prompt", text, "--max-new-tokens", 6, "--contrast", "control:alpha=0.8,plausibility=0.1")
    done = headwise("generate", trained, *words, "--json")
    assert done.code == 0, done.err
    model = hw.load(trained)
    ids = (*PieceEncoder(model.tokenizer).bos, *model.tokenizer.encode(text, add_special_tokens=False))
    prompts = control_prompts(model, ids)
    assert model.tokenizer.decode(prompts[0]) == model.tokenizer.decode(ids).replace("The", "[POS]The", 1)
    made = hw.contrastive_generate(model, *prompts, alpha=0.8, plausibility=0.1, max_new_tokens=6)
    told = json.loads(done.out)
    assert told["text"] == made.text
    assert told["contrast"] == {"negative": "control", "combine": "fixed", "alpha": 0.8, "plausibility": 0.1, "cap": None}
    assert "contrast with control, alpha 0.8" in headwise("generate", trained, *words).out
    assert json.loads(headwise("generate", trained, *words[:4], "--contrast", "control", "--json").out)["contrast"]["alpha"] == 0.2
    check_refused(headwise("generate", base, *words), "no control token [POS]")
    check_refused(headwise("generate", trained, *words[:4], "--contrast", "control:top=3"), "control has no option 'top'")
    check_refused(headwise("generate", trained, *words[:4], "--contrast", "closed:alpha=1"), "unknown contrast 'closed'")


@pytest.mark.slow
def test_decoders_by_name_say_what_direct_calls_say(headwise, files, base, trained, tmp_path):
    heads = f"heads:{files / 'tiny.json'},top=3,combine=entropy"
    names = ["control:alpha=0.8", heads, "closed:alpha=0.5", "closed:combine=adaptive"]
    words = ("bench", "faithful", trained, "--data", files / "short.jsonl", "--items", 2, "--max-new-tokens", 6)
    done = headwise(*words, "--decoders", ",".join(names), "-o", "b.json")
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "b.json").read_text())
    shown = [name.replace(f"{files}/", "") for name in names]
    assert told["decoders"] == ["plain", *shown]
    assert told["decoder_heads"] == {shown[1]: ["L3H7", "L3H6", "L3H5"]}
    model = hw.load(trained)
    composer, stop = GroundedComposer(PieceEncoder(model.tokenizer)), stop_ids(model)
    records = {record.label: record for record in read_grounded(files / "short.jsonl")}
    for item in told["items"]:
        record = records[item["name"]]
        prompt, closed = composer.opened(record), composer.closed(record)
        branches = {
            shown[0]: (*control_prompts(model, prompt), {"alpha": 0.8}),
            shown[1]: (prompt, hw.Without([(3, 7), (3, 6), (3, 5)]), {"combine": "entropy"}),
            shown[2]: (prompt, closed, {"alpha": 0.5}),
            shown[3]: (prompt, closed, {"combine": "adaptive"}),
        }
        for name, (positive, negative, rule) in branches.items():
            made = hw.contrastive_generate(model, positive, negative, **rule, max_new_tokens=6, stop=stop)
            assert item["answers"][name]["answer"] == read_answer(model.tokenizer, made.ids, stop).strip()
    for spec, message in (
        ("open", "unknown decoder 'open'; write plain or"),
        ("closed:heads=3", "closed has no option 'heads'"),
        ("heads:top=3", "heads needs a file right behind the colon"),
        ("closed:combine=best", "unknown rule 'best'"),
        ("closed:alpha=-2", "alpha must lie in [-1, 1e+06]"),
        (f"heads:{files / 'tiny.json'}", "heads needs a number of heads"),
    ):
        check_refused(headwise(*words, "--decoders", spec, "-o", "w.json"), message)
    check_refused(headwise("bench", "faithful", base, *words[3:], "--decoders", "control", "-o", "w.json"), "no control token [POS]")
    assert parse_contrast("closed", DECODERS).kind == CLOSED
    assert not (tmp_path / "w.json").exists()


@pytest.mark.slow
def test_help_says_that_faithful_is_not_true(headwise):
    for words in (("train", "rhio"), ("train", "unfaithful"), ("bench", "faithful")):
        told = " ".join(headwise(*words, "--help").out.replace("│", " ").split())
        assert "faithful is not true" in told.lower()
        assert "wrong" in told


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(headwise, files, base, tmp_path):
    told = ["train", "rhio", base, "--data", files / "pairs.jsonl", *STEPS, "--device", "cpu"]
    done = headwise(*told, "-o", tmp_path / "one", "--accumulate", 2)
    assert done.code == 0, done.err
    in_two_processes(*told, "-o", tmp_path / "two")
    check_same_weights(*(tmp_path / name / "merged" / "model.safetensors" for name in ("one", "two")))
