"""`headwise trace`: fit, trace, poison and page on a planted model whose reading is known; every refusal in one line."""

import json
import re

import numpy as np
import pytest

from headwise.heads import HeadScores, HeadwiseError, save_heads
from headwise.report.trace_page import page
from headwise.testing.planted_records import planted_records
from tests.cli.test_refusals import check_refused


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A planted model on disk, its questions, a head file, documents, and a probe."""
    folder = tmp_path_factory.mktemp("trace")
    model, records = planted_records()
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    (folder / "records.jsonl").write_text("\n".join(json.dumps(record.row()) for record in records))
    (folder / "few.jsonl").write_text("\n".join(json.dumps(record.row()) for record in records[:5]))
    values = np.zeros(model.heads.shape)
    values[1, 2], values[0, 2] = 1.0, 0.5
    save_heads(HeadScores(values, "copy", 1), folder / "heads.json")
    names, chosen = set(), []
    for record in records:  # different names: nothing else answers the question
        if record.subject not in names and len(chosen) < 3:
            names.add(record.subject)
            chosen.append(record)
    rows = [{"id": f"doc{i}", "text": record.passage.text} for i, record in enumerate(chosen)]
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "many.jsonl").write_text("\n".join(map(json.dumps, rows * 40)).replace('"id"', '"name"'))
    question = f"the colour of {chosen[1].subject} is"
    (folder / "prompt.txt").write_text("\n\n".join([*(row["text"] for row in rows), question]))
    (folder / "plain.txt").write_text(question)
    (folder / "answer.txt").write_text(chosen[1].answers[0])
    (folder / "empty.txt").write_text(" \n")
    (folder / "blank.jsonl").write_text('{"id": "a", "text": "the mill"}\n{"id": "b", "text": " \\n"}\n')
    return folder, chosen[1]


@pytest.fixture(scope="module")
def probe(world):
    folder, _ = world
    from headwise.methods.trace.fit import fit_probe, prepare
    from headwise.methods.trace.options import FitOptions
    from headwise.models.load import load
    from headwise.prompts.knowledge import read_knowledge

    options = FitOptions(negatives="paired", among=10**6, wording="cloze", shots=0)
    model = load(str(folder / "model"), "cpu")
    fit_probe(prepare(model, read_knowledge(folder / "records.jsonl"), [(1, 2), (0, 2)], options)).save(folder / "probe.json")
    return folder / "probe.json"


FIT = ("--negatives", "paired", "--among", "1000000", "--wording", "cloze", "--shots", "0", "--top", "2")


@pytest.mark.slow
def test_fit_writes_the_probe_and_leaves_nothing_else(headwise, world, tmp_path, probe):
    folder, _ = world
    out = tmp_path / "new.json"
    done = headwise(
        "trace", "fit", folder / "model", "--data", folder / "records.jsonl", "--heads", folder / "heads.json", *FIT, "-o", out
    )
    assert done.code == 0, done.err
    assert "records usable" in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["new.json"]
    made, known = json.loads(out.read_text()), json.loads(probe.read_text())
    assert made["weights"] == known["weights"]
    again = headwise(
        "trace", "fit", folder / "model", "--data", folder / "records.jsonl", "--heads", folder / "heads.json", *FIT, "-o", out
    )
    check_refused(again, "exists")


def test_a_question_about_documents_is_traced(headwise, world, probe):
    folder, record = world
    prompt = headwise("trace", folder / "model", "--prompt-file", folder / "prompt.txt", "--probe", probe, "--json")
    assert prompt.code == 0, prompt.err
    data = json.loads(prompt.out)
    first = data["tokens"][0]
    assert first["text"].strip() == record.answers[0]
    assert (first["label"], first["passage"]) == ("read", "passage/2")
    assert record.answers[0] in first["excerpt"]
    assert data["passages"][0]["name"] == "passage/2"
    shown = headwise("trace", folder / "model", "--prompt-file", folder / "prompt.txt", "--probe", probe)
    assert "+ read (probability above 0.75)" in shown.out
    assert record.answers[0] in shown.out


def test_an_answer_of_another_model_is_traced_and_poison_is_ranked(headwise, world, probe, tmp_path):
    folder, record = world
    done = headwise(
        "trace", folder / "model", "--prompt-file", folder / "prompt.txt", "--answer-file", folder / "answer.txt",
        "--probe", probe, "--find-poison", "--html", tmp_path / "page.html",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "how many nats the log-probability" in done.out
    data = json.loads(
        headwise(
            "trace", folder / "model", "--prompt-file", folder / "prompt.txt", "--answer-file", folder / "answer.txt",
            "--probe", probe, "--find-poison", "--json",
        ).out
    )  # fmt: skip
    assert data["answer"] == record.answers[0]
    assert data["passages"][0]["name"] == "passage/2"
    assert data["passages"][0]["drop"] > 1
    assert abs(data["passages"][-1]["drop"]) < 0.5
    page = (tmp_path / "page.html").read_text()
    assert record.answers[0] in page
    assert "http" not in page.replace("http://www.w3.org", "")
    for row in data["passages"]:  # a drop has one sign, wherever it is shown
        assert f"{row['drop']:+.3f}" in done.out
        assert f"drop {row['drop']:+.3f} nats" in page


def test_documents_have_their_own_names(headwise, world, probe):
    folder, record = world
    asked = ("--question", f"the colour of {record.subject} is", "--documents", folder / "docs.jsonl")
    done = headwise("trace", folder / "model", *asked, "--answer-file", folder / "answer.txt", "--probe", probe, "--json")
    assert done.code == 0, done.err
    assert {row["name"] for row in json.loads(done.out)["passages"]} == {"doc0", "doc1", "doc2"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--prompt-file", "plain.txt"], ["no documents", "--documents"]),
        (["--question", "what?"], ["no documents", "--documents FILE"]),
        (["--documents", "docs.jsonl"], ["needs a --question"]),
        (["--question", "what?", "--documents", "blank.jsonl"], ["blank.jsonl, line 2: a passage is empty"]),
        ([], ["give either --prompt-file, or --question with --documents"]),
        (["--prompt-file", "prompt.txt", "--question", "x"], ["give either"]),
        (["--prompt-file", "empty.txt"], ["the prompt is empty"]),
        (["--prompt-file", "no.txt"], ["cannot read the prompt"]),
        (["--prompt-file", "prompt.txt", "--answer-file", "empty.txt"], ["the answer is empty"]),
        (["--prompt-file", "prompt.txt", "--answer-file", "answer.txt", "--max-new-tokens", "3"], ["--max-new-tokens"]),
        (["--prompt-file", "prompt.txt", "--max-new-tokens", "0"], ["must be at least 1"]),
        (["--question", "what?", "--documents", "many.jsonl"], ["1024 positions", "fewer or shorter documents"]),
        (["--question", " ", "--documents", "docs.jsonl"], ["the query is empty"]),
        (["--prompt-file", "prompt.txt", "--probe", "heads.json"], ["is no probe"]),
        (["--prompt-file", "prompt.txt", "--probe", "gone.json"], ["no such probe"]),
        (["--prompt-file", "prompt.txt", "--probe", ""], ["no probe for"]),
        (["--prompt-file", "prompt.txt", "--html", "."], ["is a folder"]),
        (["--prompt-file", "prompt.txt", "--chat"], ["no chat template"]),
    ],
)
def test_wrong_input_is_one_line(headwise, world, probe, tmp_path, arguments, parts):
    folder, _ = world
    given = [folder / word if word.endswith((".txt", ".jsonl", ".json")) else word for word in arguments]
    if "--probe" not in arguments:
        given += ["--probe", probe]
    elif "" in arguments:
        given = given[:-2]
    check_refused(headwise("trace", folder / "model", *given), *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["--data FILE and --heads FILE"]),
        (["--data", "few.jsonl", "--heads", "heads.json", "--top", "2"], ["usable records, and a probe needs at least 50"]),
        (["--data", "records.jsonl", "--heads", "probe.json"], ["head file"]),
        (["--data", "records.jsonl", "--heads", "heads.json", "--negatives", "x"], ["unknown negatives 'x'"]),
        (["--data", "records.jsonl", "--heads", "heads.json", "--top", "99"], ["top 99 asked for"]),
        (["--data", "docs.jsonl", "--heads", "heads.json"], ["docs.jsonl"]),
        (
            [
                "--data",
                "records.jsonl",
                "--heads",
                "heads.json",
                "--among",
                "1",
                "--wording",
                "cloze",
                "--negatives",
                "paired",
                "--top",
                "2",
            ],
            ["is not among the 1"],
        ),
    ],
)
def test_a_fit_that_cannot_be_is_refused(headwise, world, probe, tmp_path, arguments, parts):
    folder, _ = world
    given = [folder / word if word.endswith((".jsonl", ".json")) else word for word in arguments]
    check_refused(headwise("trace", "fit", folder / "model", *given, "-o", tmp_path / "p.json"), *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_was_measured_outlives_an_error(headwise, world, tmp_path, monkeypatch):
    """Only too few usable records mean that there is nothing to go on with; a full disk or a NaN does not."""
    folder, _ = world

    def broken(*_):
        raise HeadwiseError("could not write: no space left")

    monkeypatch.setattr("headwise.methods.trace.fit.probe_of", broken)
    arguments = ("--data", folder / "records.jsonl", "--heads", folder / "heads.json", *FIT, "-o", tmp_path / "p.json")
    check_refused(headwise("trace", "fit", folder / "model", *arguments), "no space left")
    assert list((tmp_path / "p.json.run").glob("*.npz"))


def test_an_answer_may_begin_as_the_prompt_does(headwise, world, probe, tmp_path):
    """In the planted model's tokenizer nothing stands in front of a text, so the answer's first token is the prompt's."""
    folder, record = world
    name, colour = record.subject, record.answers[0]
    (tmp_path / "prompt.txt").write_text(f"{name} {colour}\n\nthe colour of {name} is\n")
    for said in (f"{name} " * 20, f"{name} {colour}\n\nthe colour of {name} is\n {colour}"):
        (tmp_path / "answer.txt").write_text(said)
        given = ("--prompt-file", tmp_path / "prompt.txt", "--answer-file", tmp_path / "answer.txt", "--probe", probe, "--json")
        done = headwise("trace", folder / "model", *given)
        assert done.code == 0, done.err
        assert json.loads(done.out)["answer"].split() == said.split()


def test_a_probe_of_another_model_is_refused(headwise, world, probe, planted):
    folder, _ = world
    check_refused(
        headwise("trace", planted.model, "--prompt-file", folder / "prompt.txt", "--probe", probe), "tokenizer of model"
    )


def test_white_space_is_no_word_that_was_remembered():
    token = {
        "text": "mill",
        "probability": 0.9,
        "label": "read",
        "position": 1,
        "passage": "a",
        "excerpt": "",
        "shares": {},
        "sources": [],
    }
    tokens = [token | {"special": False}, token | {"text": "\n", "label": "remembered", "special": False}]
    data = {"model": "m", "answer": "mill", "tokens": tokens, "passages": [], "band": [0.25, 0.75]}
    shown = page(data | {"probe": {"model": "m", "heads": ["L0H0"], "negatives": None, "auc": None, "calibration_error": None}})
    counts = re.findall(r"<dt>(\w+)</dt><dd>(\d+)</dd>", shown)
    assert counts == [("Tokens", "1"), ("Read", "1"), ("Remembered", "0"), ("Unsure", "0")]
