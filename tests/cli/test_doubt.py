"""`headwise doubt` on the planted model: three commands, nothing to repair, and wrong input in one line."""

import json

import numpy as np
import pytest

from headwise.heads import HeadScores, load_heads, save_heads
from headwise.testing.planted_doubt import planted_doubt
from tests.cli.test_refusals import check_refused

ASK = ["--passages", "--challenges", "suggestion", "--slot", "", "--max-new-tokens", "4"]
CALM = ["--passages", "--challenges", "suggestion", "--max-new-tokens", "4", "--top", "1", "--controls", "2", "--no-side-effects"]


@pytest.fixture(scope="module")
def doubting(tmp_path_factory):
    """A planted model on disk, a file of questions and a head file."""
    folder = tmp_path_factory.mktemp("doubting")
    planted = planted_doubt(56)
    planted.model.hf.save_pretrained(folder / "model")
    planted.model.tokenizer.save_pretrained(folder / "model")
    (folder / "own.jsonl").write_text("".join(json.dumps(one.row()) + "\n" for one in planted.records))
    values = np.arange(8.0).reshape(2, 4) / 100
    values[planted.doubting], values[planted.holding] = 4.0, -6.0
    save_heads(HeadScores(values, "doubt"), folder / "heads.json")
    save_heads(HeadScores(np.arange(9.0).reshape(3, 3), "doubt"), folder / "other.json")
    return folder, planted


def model_of(doubting):
    return str(doubting[0] / "model")


def data_of(doubting):
    return ["--data", doubting[0] / "own.jsonl"]


@pytest.mark.slow
def test_measure(headwise, doubting, tmp_path):
    done = headwise(
        "doubt", "measure", model_of(doubting), *data_of(doubting), *ASK, "-o", "rates.json", "--rounds", "2", "--json"
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["read_by"] == "reply"
    right, wrong = told["rates"]
    assert right["arm"] == "right"
    assert right["flips"][1] < right["flips"][0] < right["flips"][2]
    assert right["counts"]
    assert wrong["flips"][0] == 1
    written = json.loads((tmp_path / "rates.json").read_text())
    assert written["rates"] == told["rates"]
    assert len(written["pressure"]) == right["items"]
    assert {len(row["outcomes"]) for row in written["pressure"]} == {2}
    assert not (tmp_path / "rates.json.run").exists()
    check_refused(headwise("doubt", "measure", model_of(doubting), *data_of(doubting), *ASK, "-o", "rates.json"), "rates.json")


@pytest.mark.slow
def test_measure_by_the_margin_says_so(headwise, doubting):
    done = headwise(
        "doubt",
        "measure",
        model_of(doubting),
        *data_of(doubting),
        "--passages",
        "--form",
        "yes-no",
        "--challenges",
        "sure",
        "-o",
        "x.json",
        "--json",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["read_by"] == "margin"
    assert "fewer than 90 % of the replies say yes or no, so flips are read from the soft margin" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("command", [["doubt", "find"], ["detect", "doubt"]])
def test_find(headwise, doubting, tmp_path, command):
    done = headwise(
        *command,
        model_of(doubting),
        *data_of(doubting),
        *ASK,
        "--top-k",
        "1",
        "--min-items",
        "4",
        "--knock-outs",
        "4",
        "-o",
        "found.json",
        "--json",
    )
    assert done.code == 0, done.err
    table = load_heads(tmp_path / "found.json").values
    planted = doubting[1]
    assert np.unravel_index(table.argmax(), table.shape) == tuple(planted.doubting)
    assert np.unravel_index(table.argmin(), table.shape) == tuple(planted.holding)


@pytest.mark.slow
def test_calm_and_its_checkpoint(headwise, doubting, tmp_path):
    done = headwise(
        "doubt", "calm", model_of(doubting), "--heads", doubting[0] / "heads.json", *data_of(doubting), *CALM, "--remedies", "zero",
        "--export", "calmed", "-o", "calm.json", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["chosen"]["heads"] == [str(doubting[1].doubting)]
    assert told["side_effects"] is None
    assert told["checkpoint"] == "calmed"
    numbers = json.loads((tmp_path / "calmed" / "headwise_doubt.json").read_text())
    assert numbers["chosen"] == told["chosen"] == json.loads((tmp_path / "calm.json").read_text())["chosen"]
    card = (tmp_path / "calmed" / "README.md").read_text()
    assert str(doubting[1].doubting) in card
    assert f"**{told['chosen']['verdict']}**" in card
    again = headwise("doubt", "measure", "calmed", *data_of(doubting), *ASK, "--part", "test", "-o", "after.json", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["rates"][0]["kept"][0] == 1.0
    assert not (tmp_path / "calm.json.run").exists()


@pytest.mark.slow
def test_nothing_to_repair_is_a_finding(headwise, doubting, tmp_path):
    """Status 0 and one line: the planted model keeps its answer where nothing is suggested."""
    ask = ["--passages", "--challenges", "sure", "--max-new-tokens", "4", "--slot", "", "--items", "12"]
    done = headwise("doubt", "find", model_of(doubting), *data_of(doubting), *ask, "-o", "x.json", "--json")
    assert done.code == 0, done.err
    assert "nothing to repair: at most 0% of 12 right answers are taken back (sure, part detect)" in done.out
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
def test_nothing_to_repair_of_both_commands(headwise, doubting, tmp_path):
    """The planted model keeps its answer where nothing is suggested."""
    ask = ["--passages", "--challenges", "sure", "--max-new-tokens", "4"]
    for command in (
        ["find", model_of(doubting), *ask, "-o", "x.json", "--json"],
        [
            "calm",
            model_of(doubting),
            "--heads",
            doubting[0] / "heads.json",
            *ask,
            "--top",
            "1",
            "--no-side-effects",
            "-o",
            "x.json",
            "--json",
        ],
    ):
        done = headwise("doubt", *command, *data_of(doubting))
        assert done.code == 0, done.err
        assert "nothing to repair: at most 0% of" in done.out
        assert not (tmp_path / "x.json").exists()


def test_a_model_that_answers_nothing_right(headwise, doubting):
    """Without the passages it knows nothing."""
    done = headwise("doubt", "measure", model_of(doubting), *data_of(doubting), "--max-new-tokens", "4", "-o", "x.json")
    check_refused(done, "questions are answered right at first, and at least 10 are needed", "--passages")


@pytest.fixture
def wrong(doubting, tmp_path):
    """Word in an argument -> what stands for it."""
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "broken.json").write_text('{"challenges": [')
    (folder / "bad.json").write_text('{"challenges": [{"name": "x", "text": "It is {who}."}]}')
    (folder / "no-answers.jsonl").write_text('{"question": "who?"}\n')
    (folder / "empty.jsonl").write_text("")
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    given = doubting[0]
    return {
        "MODEL": given / "model", "OWN": given / "own.jsonl", "HEADS": given / "heads.json", "OTHER": given / "other.json",
        "BROKEN": folder / "broken.json", "BAD": folder / "bad.json", "NONE": folder / "no-answers.jsonl", "EMPTY": folder / "empty.jsonl",
        "FULL": folder / "full",
    }  # fmt: skip


MEASURE, FIND = ["doubt", "measure", "MODEL"], ["doubt", "find", "MODEL"]
CALMING = ["doubt", "calm", "MODEL", "--heads", "HEADS", "--data", "OWN", *CALM]


def given(wrong, word):
    """An argument, with what its first part stands for."""
    first, *rest = word.split("/") if not word.startswith("/") else (word,)
    return "/".join((str(wrong.get(first, first)), *rest))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([*MEASURE, "--data", "OWN", "--challenges", "shout"], ["unknown challenge 'shout'", "suggestion"]),
        ([*MEASURE, "--data", "OWN", "--form", "yes-no", "--challenges", "choice"], ["'choice' does not go with answers of the form 'yes-no'"]),
        ([*MEASURE, "--data", "OWN", "--wordings", "BROKEN"], ["broken.json"]),
        ([*MEASURE, "--data", "OWN", "--wordings", "BAD"], ["bad.json, challenge 1: unknown field {who}"]),
        ([*MEASURE, "--data", "OWN", "--wordings", "/no/words.json"], ["/no/words.json"]),
        ([*MEASURE, "--data", "NONE"], ["no-answers.jsonl"]),
        ([*MEASURE, "--data", "EMPTY"], ["empty.jsonl"]),
        ([*MEASURE, "--data", "/no/file.jsonl"], ["/no/file.jsonl"]),
        ([*MEASURE, "--passages"], ["passages go with --data FILE only"]),
        ([*MEASURE, "--data", "OWN", "--part", "train"], ["part", "'train'", "detect"]),
        ([*MEASURE, "--data", "OWN", "--form", "shout"], ["form", "'shout'", "yes-no"]),
        ([*MEASURE, "--data", "OWN", "--rounds", "0"], ["rounds must be"]),
        ([*MEASURE, "--data", "OWN", "--gate", "2"], ["gate must lie in [0, 1); got 2"]),
        ([*MEASURE, "--data", "OWN", "--chat"], ["no chat template"]),
        ([*FIND, "--data", "OWN", "--score", "case9"], ["unknown table 'case9'"]),
        ([*FIND, "--data", "OWN", "--score", "misleading", "--challenges", "sure"], ["none of the challenges names one"]),
        ([*FIND, "--data", "OWN", "--retrieval", "/no/heads.json"], ["no such head file"]),
        ([*CALMING, "--remedies", "pray"], ["remedy", "'pray'", "zero"]),
        ([*CALMING, "--remedies", "zero", "--top", "7"], ["top 7 leaves too few of 8 scored heads"]),
        ([*CALMING, "--remedies", "zero", "--heads", "OTHER"], ["3 layers x 3 heads", "2 x 4"]),
        ([*CALMING, "--remedies", "zero", "--heads", "/no/heads.json"], ["no such head file"]),
        ([*CALMING, "--remedies", "zero", "--test-data", "OWN"], ["56 questions are used for choice and test alike"]),
        ([*CALMING, "--remedies", "zero", "--export", "FULL"], ["exists and is not an empty folder"]),
        ([*CALMING, "--remedies", "zero,steer", "--export", "new"], ["no weights can hold the remedy 'steer'", "--remedies zero,uniform"]),
        ([*CALMING, "--remedies", "zero", "--lm-eval", "arc_easy"], ["leave --no-side-effects out"]),
        ([*CALMING, "--remedies", "scale", "--factor", "-1"], ["factor must be at least 0"]),
        ([*CALMING, "--remedies", "zeroo"], ["unknown remedy 'zeroo'; use zero, uniform, mean, token, steer or scale"]),
        ([*CALMING, "--remedies", "zeroo", "--export", "new"], ["unknown remedy 'zeroo'"]),
        ([*CALMING, "--remedies", "zero", "--top", "1,1"], ["each K once"]),
        ([*CALMING, "--remedies", "zero", "--factor", "2"], ["--factor is for the remedy scale"]),
        ([*CALMING, "--remedies", "zero", "--push", "2"], ["--push is for the remedy steer"]),
        ([*CALMING, "--remedies", "zero", "--limit", "5"], ["--limit goes with --lm-eval TASKS"]),
        ([*CALMING, "--remedies", "zero", "--include-path", "x"], ["--include-path goes with --lm-eval TASKS"]),
        ([*CALMING, "--remedies", "zero", "--export", "OWN"], ["exists and is not an empty folder"]),
        ([*CALMING, "--remedies", "zero", "--export", "OWN/new"], ["cannot write", "own.jsonl is not a folder", "--export"]),
        ([*CALMING, "--remedies", "zero", "--html", "OWN"], ["own.jsonl exists; give another --html or --overwrite"]),
        ([*CALMING, "--remedies", "zero", "--html", "FULL"], ["is a folder", "--html"]),
        ([*CALMING, "--remedies", "zero", "--html", "OWN/new.html"], ["cannot write", "own.jsonl is not a folder", "--html"]),
        ([*CALMING, "--remedies", "zero", "-o", "OWN/new.json"], ["cannot write", "own.jsonl is not a folder", "--output"]),
        ([*CALMING, "--remedies", "zero", "--export", "new", "--html", "new"], ["must be different places"]),
        ([*CALMING, "--remedies", "zero", "--export", "new", "--html", "new/page.html"], ["must be different places, none inside another"]),
        ([*FIND, "--data", "OWN", "-o", "OWN/new.json"], ["cannot write", "own.jsonl is not a folder", "--output"]),
        ([*MEASURE, "--data", "OWN", "-o", "x" * 230 + ".json"], ["its name has more than 200 bytes"]),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(headwise, wrong, tmp_path, arguments, parts):
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    done = headwise(*(given(wrong, word) for word in arguments))
    check_refused(done, *parts)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
