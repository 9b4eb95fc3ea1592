"""`headwise bench faithful` and `headwise bench reader`: tables, JSON, resuming, checkers of other packages, and wrong input."""

import importlib.metadata
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from headwise.cli import options as o
from headwise.heads import HeadScores, save_heads
from headwise.testing.planted_records import planted_records
from tests.cli.test_refusals import check_refused
from tests.unit.test_support import nli

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A planted model that copies from passages and knows nothing, its heads, and questions as a user would bring them."""
    folder = tmp_path_factory.mktemp("given")
    model, records = planted_records(24)
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    short = folder / "short.jsonl"
    short.write_text("".join(json.dumps(record.row()) + "\n" for record in records))
    long = folder / "long.jsonl"
    rows = [
        {
            "question": record.question,
            "documents": [f"{record.passage.text}\nAnswer: {record.question} {record.answers[0]} ."],  # the head copies what followed
            "answers": [f"{record.question} {record.answers[0]} ."],
            "id": record.name,
            "judged": [
                {
                    "sentences": [
                        {"text": f"{record.question} {record.answers[0]} .", "support": 1},
                        {"text": f"{record.question} {record.swapped_answer} .", "support": 0},
                    ]
                }
            ],
        }
        for record in records[:6]
    ]
    rows.append({"question": records[7].question, "documents": [records[8].passage.text], "answerable": False})
    long.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = np.zeros((2, 4))
    values[1, 2], values[0, 3] = 2, 1
    save_heads(HeadScores(values, "copy"), folder / "heads.json")
    save_heads(HeadScores(np.random.default_rng(0).random((3, 4)), "copy"), folder / "other.json")
    return SimpleNamespace(model=str(folder / "model"), short=short, long=long, heads=folder / "heads.json", other=folder / "other.json")


def answered(headwise, *arguments):
    done = headwise("bench", *arguments)
    assert done.code == 0, done.err
    return done


@pytest.mark.slow
def test_short_answers_make_a_table_of_three_measures(headwise, given, tmp_path):
    path = tmp_path / "r.json"
    words = ("faithful", given.model, "--data", given.short, "--wording", "cloze", "--max-new-tokens", 4)
    done = answered(headwise, *words, "--items", 22, "-o", path)
    lines = done.out.splitlines()
    row = next(line for line in lines if line.startswith("plain"))
    assert "100 (100–100)" in row
    assert row.count("not testable") == 2
    assert "Not testable: fewer questions than --min-questions." in done.out
    assert "Second lines" not in done.out  # there is one decoder
    assert "22 questions" in done.out
    assert max(map(len, (line for line in lines if not line.startswith("result")))) <= 80
    told = json.loads(path.read_text())
    assert (told["kind"], len(told["items"]), told["rows"][0]["share"]) == ("faithful", 22, 1.0)
    assert not path.with_name("r.json.run").exists()
    again = answered(headwise, *words, "--items", 22, "-o", tmp_path / "s.json", "--against", path, "--min-questions", 23, "--json")
    rows = json.loads(again.out)["rows"]
    assert [(row["measure"], row["testable"]) for row in rows if row["measure"] == "correction"] == [("correction", False), ("correction", True)]
    assert [row["model"] for row in rows if row["measure"] == "correction"] == ["model", "model (r.json)"]  # both are called the same
    named = answered(headwise, *words, "--items", 22, "-o", tmp_path / "n.json", "--against", path, "--name", "mine", "--json")
    assert {row["model"] for row in json.loads(named.out)["rows"]} == {"mine", "model"}
    other = headwise("bench", *words, "--items", 21, "-o", tmp_path / "t.json", "--against", path)
    check_refused(other, "r.json asked other questions")
    assert not (tmp_path / "t.json").exists()


def test_answers_in_sentences_make_a_table_of_support(headwise, given, tmp_path):
    path = tmp_path / "r.json"
    done = answered(headwise, "faithful", given.model, "--data", given.long, "--max-new-tokens", 6, "-o", path)
    assert "checker: lexical" in done.out
    assert "6 + 1 questions" in done.out
    row = next(line for line in done.out.splitlines() if line.startswith("plain"))
    assert row.split()[:5] == ["plain", "100", "(100–100)", "100", "0"]
    assert "Shared words are a weak checker" in done.out
    assert max(len(line) for line in done.out.splitlines() if not line.startswith("result")) <= 80
    told = json.loads(path.read_text())
    assert (told["kind"], told["rows"][0]["questions"], told["rows"][0]["unanswerable"]) == ("support", 6, 1)
    assert told["rows"][0]["coverage"] > 0.8
    assert told["rows"][0]["unanswerable_refusals"] == 1  # nothing to copy, so nothing is said
    assert set(told["items"][0]["answers"]["plain"]) >= {"answer", "sentences", "scores", "coverage", "refused", "words"}


@pytest.mark.slow
def test_an_entailment_model_is_a_checker(headwise, given, tmp_path):
    folder = nli(tmp_path / "nli", ["entailment", "neutral"])
    words = ("faithful", given.model, "--data", given.long, "--items", 2, "--max-new-tokens", 4, "--json")
    done = answered(headwise, *words, "--checker", f"entailment:{folder}", "-o", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["checker"]["checker"] == "entailment (nli)"
    assert json.loads(done.out)["kind"] == "support"
    refused = headwise("bench", *words, "--checker", f"entailment:{nli(tmp_path / 'no', ['a', 'b'])}", "-o", tmp_path / "s.json")
    check_refused(refused, "none of its labels (a, b) is called entailment or supported")


@pytest.mark.slow
def test_checkers_of_other_packages_are_found(headwise, given, tmp_path, monkeypatch):
    entry = importlib.metadata.EntryPoint("world", "headwise_lab.faithful:ExactChecker", "headwise.checkers")
    monkeypatch.setattr(o, "installed", lambda kind: {"world": entry} if kind == "checkers" else {})
    words = ("faithful", given.model, "--data", given.long, "--items", 3, "--max-new-tokens", 4)
    done = answered(headwise, *words, "--checker", "world", "-o", tmp_path / "r.json")
    assert "checker: world" in done.out
    assert "unreadable" in done.out
    check_refused(headwise("bench", *words, "--checker", "word"), "unknown checker 'word'; use lexical, entailment:FOLDER, world")


def test_the_lab_registers_its_checker():
    text = (Path(__file__).parents[2] / "lab" / "pyproject.toml").read_text()
    assert '[project.entry-points."headwise.checkers"]\nworld = "headwise_lab.faithful:ExactChecker"' in text


@pytest.mark.slow
def test_the_same_command_goes_on_where_it_stopped(headwise, given, tmp_path, monkeypatch):
    from headwise.evaluation import faithful

    path, whole, calls = tmp_path / "r.json", faithful._said, []
    words = ("faithful", given.model, "--data", given.short, "--wording", "cloze", "--items", 4, "--max-new-tokens", 4, "--json", "-o", path)

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(faithful, "_said", stops)
    assert headwise("bench", *words).code == 130
    assert not path.exists()
    answered(headwise, *words)
    assert len(calls) == 5  # two were kept, the third was asked again
    assert len(json.loads(path.read_text())["items"]) == 4


@pytest.mark.slow
def test_a_reader_is_measured_beside_its_controls(headwise, given, tmp_path):
    path = tmp_path / "r.json"
    words = ("reader", given.model, "--data", given.long, "--heads", given.heads, "--top", 1, "--controls", 2)
    done = answered(headwise, *words, "-o", path)
    for name in ("attention", "copying", "chosen", "random", "lexical overlap", "length"):
        assert name in done.out
    assert max(len(line) for line in done.out.splitlines() if not line.startswith("result")) <= 80
    told = json.loads(path.read_text())
    assert (told["chosen_heads"], len(told["sentences"]), told["options"]["controls"]) == (["L1H2"], 12, 2)
    rows = json.loads(answered(headwise, *words, "-o", tmp_path / "s.json", "--json").out)["rows"]
    assert rows == told["rows"]
    assert not path.with_name("r.json.run").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["faithful", "MODEL", "--data", "none.jsonl"], ["cannot read questions from none.jsonl"]),
        (["faithful", "MODEL", "--data", "SHORT", "--layout", "wiki"], ["unknown layout 'wiki'", "clapnq"]),
        (["faithful", "MODEL", "--data", "SHORT", "--decoders", "plain,cad"], ["unknown decoder 'cad'; write plain or heads:FILE,top=8"]),
        (["faithful", "MODEL", "--data", "SHORT", "--checker", "lexical"], ["--checker is for answers in sentences", "short.jsonl"]),
        (["faithful", "MODEL", "--data", "LONG", "--shots", "2"], ["--shots is for short answers", "long.jsonl"]),
        (["faithful", "MODEL", "--data", "LONG", "--min-questions", "2"], ["--min-questions is for short answers"]),
        (["faithful", "MODEL", "--data", "LONG", "--checker", "oracle"], ["unknown checker 'oracle'; use lexical, entailment:FOLDER"]),
        (["faithful", "MODEL", "--data", "LONG", "--checker", "lexical:x"], ["the checker lexical takes no options"]),
        (["faithful", "MODEL", "--data", "LONG", "--checker", "entailment:"], ["an entailment model is needed"]),
        (["faithful", "MODEL", "--data", "LONG", "--wording", "cloze"], ["unknown wording 'cloze'; use plain or instructed"]),
        (["faithful", "MODEL", "--data", "LONG", "--chat"], ["no chat template"]),
        (["faithful", "MODEL", "--data", "LONG", "--max-new-tokens", "0"], ["max_new_tokens must be a whole number of at least 1"]),
        (["faithful", "MODEL", "--data", "LONG", "--max-new-tokens", "9999"], ["none of 7 questions can be asked", "longer than"]),
        (["faithful", "MODEL", "--data", "SHORT", "--min-questions", "0"], ["min_questions must be a whole number of at least 1"]),
        (["faithful", "MODEL", "--data", "SHORT", "--against", "LONG"], ["long.jsonl: no valid JSON"]),
        (["reader", "MODEL", "--data", "SHORT", "--heads", "HEADS"], ["the layout own has a field 'documents', which is missing here"]),
        (["reader", "MODEL", "--data", "LONG", "--heads", "OTHER"], ["belong to a model of 3 layers x 4 heads"]),
        (["reader", "MODEL", "--data", "LONG", "--heads", "none.json"], ["no such head file: none.json"]),
        (["reader", "MODEL", "--data", "LONG", "--heads", "HEADS", "--pool", "sum"], ["unknown pool 'sum'; use mean or max"]),
        (["reader", "MODEL", "--data", "CLAPNQ", "--heads", "HEADS", "--top", "1"], ["the file holds no judged answers"]),
    ],
)
def test_wrong_input(headwise, given, tmp_path, arguments, parts):
    names = {"MODEL": given.model, "SHORT": given.short, "LONG": given.long, "HEADS": given.heads, "OTHER": given.other}
    names["CLAPNQ"] = DATA / "grounded" / "clapnq.jsonl"
    done = headwise("bench", *(names.get(word, word) for word in arguments))
    check_refused(done, *parts)
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.run"))
