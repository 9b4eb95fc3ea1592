"""`headwise steer vector`, `copy` and `conflict` on a planted model."""

import json

import numpy as np
import pytest

from headwise.heads import HeadScores, save_heads
from headwise.heads.headfile import load_result
from headwise.testing.planted import planted_task
from tests.cli.test_refusals import check_refused


@pytest.fixture(scope="module")
def task():
    return planted_task()


@pytest.fixture(scope="module")
def given(tmp_path_factory, task):
    """Head files, prompts and questions, as a user would bring them."""
    folder = tmp_path_factory.mktemp("given")
    values = np.zeros((2, 4))
    values[1, 2], values[0, 3] = 2, 1
    save_heads(HeadScores(values, "copy"), folder / "heads.json")
    values = np.zeros((2, 4))
    values[1, 0], values[0, 3] = 2, 1
    save_heads(HeadScores(values, "parametric"), folder / "memory.json")
    save_heads(HeadScores(np.random.default_rng(0).random((3, 4)), "copy"), folder / "other.json")
    with (folder / "items.jsonl").open("w") as file:
        for number in (0, 2, 3, 4, 5):
            row = {"prompt": prompt(task, (number, 1), number), "answer": task.needles[1]["answer"].split()[0]}
            file.write(json.dumps(row) + "\n")
    (folder / "prompt.txt").write_text(prompt(task, (0, 1), 1))
    return folder


def prompt(task, needles, number):
    """A text that holds some needles, and the beginning of one's sentence."""
    words = task.texts[0].split()
    parts = [f"{' '.join(words[20 * i : 20 * i + 20])} {task.needles[needle]['needle']}" for i, needle in enumerate(needles)]
    return " ".join([*parts, task.needles[number]["answer_prefix"]])


def run(headwise, *arguments):
    done = headwise("steer", *arguments)
    assert done.code == 0, done.err
    return done


@pytest.fixture
def saved(planted, headwise, given, tmp_path):
    path = tmp_path / "v.safetensors"
    run(headwise, "vector", planted.model, "--heads", given / "heads.json", "--top", 1, "--prompt-file", given / "prompt.txt", "-o", path)
    return path


@pytest.mark.slow
def test_vectors_are_taken_and_put_in(planted, headwise, task, saved):
    asked = prompt(task, (0, 1), 0)
    word = task.needles[1]["answer"].split()[0]
    done = run(headwise, "vector", planted.model, "--apply", saved, "--prompt", asked, "--max-new-tokens", 3, "--json")
    told = json.loads(done.out)
    assert told["plain"].split() == task.needles[0]["answer"].split()
    assert told["steered"].split() == [word] * 3
    assert told["heads"] == ["L1H2"]
    assert told["shape"] == [1, 128]
    assert told["norms"][0] > 0
    assert (told["mode"], told["scale"]) == ("replace", 1.0)
    done = run(headwise, "vector", planted.model, "--apply", saved, "--prompt", asked, "--max-new-tokens", 3)
    assert [line.split()[0] for line in done.out.strip().splitlines()] == ["without", "with", "vectors"]


@pytest.mark.slow
def test_the_scale_is_searched_on_items(planted, headwise, given, tmp_path):
    path = tmp_path / "searched.safetensors"
    words = ("vector", planted.model, "--heads", given / "heads.json", "--top", 1, "--prompt-file", given / "prompt.txt")
    words = (*words, "--items", given / "items.jsonl", "--scales", "0.01,1,2", "--controls", 1, "--max-new-tokens", 2)
    told = json.loads(run(headwise, *words, "-o", path, "--json").out)
    assert told["scale"] == 1.0
    assert [row["share"] for row in told["search"]["development"]] == [0, 1, 1]
    assert told["search"]["items"] == 4
    assert (told["search"]["plain"]["mean"], told["search"]["steered"]["mean"], told["search"]["random"]["mean"]) == (0, 1, 0)
    done = run(headwise, *words, "-o", path, "--overwrite")
    assert "4 other items: 0.00 without, 1.00 with vectors" in done.out
    check_refused(headwise("steer", *words, "-o", path), "exists")


def test_an_average_comes_from_several_prompts(planted, headwise, given, tmp_path):
    path = tmp_path / "mean.safetensors"
    words = ("vector", planted.model, "--heads", given / "heads.json", "--top", 2, "--prompts", given / "items.jsonl", "-o", path, "--json")
    told = json.loads(run(headwise, *words).out)
    assert told["shape"] == [2, 128]
    assert told["search"] is None


@pytest.mark.slow
def test_heads_are_made_to_copy(planted, headwise, task, given):
    asked, word = prompt(task, (0, 1), 0), task.needles[1]["answer"].split()[1]
    words = ("copy", planted.model, "--heads", given / "heads.json", "--top", 1, "--prompt", asked, "--span", word, "--max-new-tokens", 3)
    for more in (("--how", "mix", "--weight", 1), ("--beta", 3)):
        told = json.loads(run(headwise, *words, *more, "--json").out)
        assert told["plain"].split() == task.needles[0]["answer"].split()
        assert told["forced"].split() == [word] * 3
        (span,) = told["spans"]
        assert span[1] - span[0] == 1
    done = run(headwise, *words, "--how", "mix")
    assert f"1 heads read 1 of {told['tokens']} tokens, mix" in done.out


@pytest.mark.slow
def test_a_span_that_cuts_tokens_is_refused(headwise, tmp_path):
    """Cut there, the prompt would be another one for the bundled model, and even its plain answer another."""
    save_heads(HeadScores(np.arange(64.0).reshape(8, 8), "copy", 1), tmp_path / "lab.json")
    words = ("steer", "copy", "--heads", tmp_path / "lab.json", "--top", 1, "--prompt", "The old mill stood by the river.", "--max-new-tokens", 1)
    check_refused(headwise(*words, "--span", "e"), "the span 'e' begins or ends inside a token of the prompt", "give whole words")
    for span in ("mill stood", "The old", "river."):
        assert headwise(*words, "--span", span).code == 0


@pytest.mark.slow
def test_curves_of_memory_against_passage(planted, headwise, task, given, tmp_path):
    """Questions that the planted model can spell only in the bare wording, so its own JSON lines carry the needles."""
    rows = []
    for number in range(52):
        needle, known = task.needles[number % 8], task.needles[(number + 1) % 8]["answer"]
        words = task.texts[0].split()[number : number + 20]
        said = {"title": "", "text": " ".join([*words, needle["needle"]])}
        rows.append({"question": needle["answer_prefix"], "answers": [known], "swapped": said, "swapped_answer": needle["answer"]})
    (given / "conflict.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "c.json"
    words = ("conflict", planted.model, "--data", given / "conflict.jsonl", "--context", given / "heads.json", "--memory", given / "memory.json")
    words = (*words, "--top", "1", "--controls", 1, "--wording", "cloze", "--max-new-tokens", 4, "--scope", "answer", "-o", path)
    told = json.loads(run(headwise, *words, "--json").out)
    found = {(row["metric"], row["kind"], row["k"]): row["mean"] for row in told["summary"]}
    assert found["context_passage", "none", 0] > 0.9
    assert found["context_passage", "top", 1] == 0
    assert found["memory_passage", "top", 1] == found["memory_passage", "none", 0]
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert load_result(path)[0] == "ablation"
    assert not path.with_name("c.json.run").exists()
    assert headwise("show", path).code == 0
    done = run(headwise, *words, "--overwrite")
    assert "In-context: passage" in done.out


VECTOR = ["vector", "MODEL", "--heads", "heads.json", "--top", "1", "--prompt", "the river"]
COPY = ["copy", "MODEL", "--heads", "heads.json", "--top", "1", "--prompt", "the river was slow"]
CONFLICT = ["conflict", "MODEL", "--data", "items.jsonl"]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["vector", "MODEL", "--prompt", "the river"], ["give --heads FILE", "--apply FILE"]),
        (VECTOR[:-2], ["give either --prompt or --prompt-file"]),
        ([*VECTOR, "--prompts", "items.jsonl"], ["several to average (--prompts), not both"]),
        ([*VECTOR, "--scales", "1,2"], ["--scales goes with --items"]),
        ([*VECTOR, "--items", "items.jsonl", "--scale", "2"], ["--scale is searched with --items"]),
        ([*VECTOR, "--items", "items.jsonl", "--scales", "1,x"], ["--scales takes numbers separated by commas"]),
        ([*VECTOR, "--items", "prompt.txt"], ["no valid JSON"]),
        ([*VECTOR, "--items", "bare.jsonl"], ["line 1: a line needs an `answer`"]),
        ([*VECTOR, "--mode", "swap"], ["unknown mode 'swap'"]),
        ([*VECTOR[:3], "none.json", "--prompt", "x"], ["no such head file"]),
        ([*VECTOR[:3], "other.json", "--prompt", "x"], ["3 layers x 4 heads"]),
        ([*VECTOR[:3], "heads.json", "--top", "9", "--prompt", "x"], ["9 asked for, but the file scores 8 heads"]),
        ([*VECTOR, "--max-new-tokens", "0"], ["--max-new-tokens must be at least 1"]),
        (["vector", "MODEL", "--apply", "heads.json", "--prompt", "the river"], ["cannot be read as a file of vectors"]),
        (["vector", "MODEL", "--apply", "heads.json", "--top", "3", "--prompt", "x"], ["--top is for making vectors"]),
        (COPY, ["--span"]),
        ([*COPY, "--span", ""], ["--span is empty"]),
        ([*COPY, "--span", "\t "], ["--span is empty"]),
        ([*COPY, "--span", "boat"], ["the prompt does not hold the span 'boat'"]),
        ([*COPY, "--span", "river", "--how", "push"], ["unknown way 'push'"]),
        ([*COPY, "--span", "river", "--weight", "1"], ["--weight does nothing with --how two_step"]),
        ([*COPY, "--span", "river", "--how", "mix", "--weight", "2"], ["weight must lie in [0, 1]"]),
        (CONFLICT, ["give --context FILE, --memory FILE, or both"]),
        ([*CONFLICT, "--context", "heads.json"], ["question"]),
        ([*CONFLICT, "--context", "heads.json", "--records", "0"], ["--records must be at least 1"]),
        ([*CONFLICT, "--context", "heads.json", "--mode", "mean"], ["unknown ablation mode 'mean'"]),
        ([*CONFLICT, "--context", "heads.json", "--wording", "loud"], ["unknown wording 'loud'"]),
        ([*CONFLICT, "--context", "heads.json", "--shots", "-1"], ["shots"]),
        (["conflict", "MODEL", "--data", "bare.jsonl", "--context", "heads.json"], ["question"]),
        (["conflict", "MODEL", "--data", "few.jsonl", "--context", "heads.json", "--top", "1"], ["0 of 1 records can be used", "at least 50"]),
    ],
)
def test_wrong_input_is_refused_in_one_line(planted, headwise, given, words, parts, tmp_path):
    (given / "bare.jsonl").write_text('{"prompt": "the river"}\n')
    swapped = {"question": "the secret of fir is", "answers": ["men old"], "swapped": "the men of old", "swapped_answer": "men of"}
    (given / "few.jsonl").write_text(json.dumps(swapped) + "\n")
    files = {path.name: str(path) for path in given.iterdir()}
    done = headwise("steer", *(planted.model if word == "MODEL" else files.get(word, word) for word in words))
    if words is COPY:
        assert done.code == 2
        assert "--span" in done.err
    else:
        check_refused(done, *parts)
    assert list(tmp_path.iterdir()) == []
