"""Finding copy heads on a model whose only copying head is known; refusals; runs that are interrupted, also by kill -9."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from headwise.heads import HeadScores, HeadwiseError, NoSuccessfulRunError, PromptError, load_heads, save_heads
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import STABLE_GROUPS, copy_scores, describe_run
from headwise.models.load import load
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grid import GridOptions, Task
from headwise.prompts.haystack import Haystack
from headwise.prompts.needles import Needle, NeedleComposer
from headwise.runtime.rundir import RunDirectory
from headwise.testing.planted import check_detector, planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer, word_tokenizer


def task_for(model, planted, lengths=(60, 100), depths=(0.0, 0.5, 1.0), needles=2, **grid):
    encoder = PieceEncoder(model.tokenizer)
    chosen = [Needle(**row) for row in planted.needles[:needles]]
    return Task(
        chosen, Haystack(planted.texts, encoder), NeedleComposer(encoder), GridOptions(tuple(lengths), tuple(depths), **grid)
    )


def planted(*shape, **options):
    model, tokenizer = planted_copier(*shape, **options)
    return Model(model, tokenizer)


@pytest.fixture(scope="module")
def model():
    return planted()


@pytest.fixture(scope="module")
def task(model):
    return task_for(model, planted_task())


@pytest.fixture(scope="module")
def scores(model, task):
    return copy_scores(model, task, Copy())


def detect(model, material):
    return copy_scores(model, task_for(model, material, (80,), (0.5,), 3), Copy())


# ---- the planted head


def test_the_planted_head_scores_one_and_every_other_head_nothing(scores):
    assert scores.values.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert scores.runs.shape == (12, 2, 4)
    assert (scores.runs == scores.values).all()
    assert scores.top(1).heads == ((1, 2),)
    assert scores.score == "copy"


@pytest.mark.parametrize("rule", ["set", "multiset"])
@pytest.mark.parametrize("match", ["token", "position"])
def test_all_rules_agree_on_a_head_that_reads_in_order(model, task, scores, rule, match):
    small = replace(task, grid=replace(task.grid, lengths=(60,)))
    assert (copy_scores(model, small, Copy(rule=rule, match=match)).values == scores.values).all()


def test_the_copy_detector_passes_the_check():
    check_detector(detect)


def constant(value):
    return lambda model, material: HeadScores(np.full(model.heads.shape, value), "copy")


def upside_down(model, material):
    found = detect(model, material)
    return replace(found, values=1 - found.values)


def always_the_first(model, material):
    values = np.zeros(model.heads.shape)
    values[1, 2] = 1
    return HeadScores(values, "copy")


def half_of_the_heads(model, material):
    found = detect(model, material)
    return replace(found, values=found.values[:, ::2], runs=None, run_info=())


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (
            upside_down,
            r"the detector missed the head planted at L1H2 in 2 layers x 4 heads: it scores 0, another head \(L0H0\) 1",
        ),
        (always_the_first, r"missed the head planted at L2H0 in 3 layers x 4 heads"),
        (half_of_the_heads, r"gave 2 x 2 scores, not one per head"),
        (constant(np.nan), r"gave no score to the head planted at L1H2"),
        (constant(0.5), r"all 8 heads have the same copy score"),
    ],
)
def test_the_check_refuses_detectors_that_miss_it(detector, message):
    with pytest.raises(HeadwiseError, match=message) as error:
        check_detector(detector)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("layers", "heads", "layer", "head"), [(2, 4, 0, 1), (2, 4, 2, 0), (2, 4, 1, 4), (2, 1, 1, 0)])
def test_impossible_places_are_refused(layers, heads, layer, head):
    with pytest.raises(
        HeadwiseError, match=rf"cannot plant L{layer}H{head} in {layers} layers x {heads} heads; choose layer 1 to"
    ):
        planted_copier(layers, heads, layer, head)
    with pytest.raises(HeadwiseError, match="4 heads cannot share 3 KV heads"):
        planted_copier(kv_heads=3)


@pytest.mark.parametrize("options", [{"seed": 1}, {"seed": 2, "kv_heads": 2}, {"seed": 3, "kv_heads": 1}])
def test_planting_works_for_every_seed_and_grouping(options):
    model = planted(**options)
    found = copy_scores(model, task_for(model, planted_task(options["seed"]), (700,), (0.3,), 4), Copy())
    assert found.values.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert found.provenance["solved"] == 4


def test_the_planted_model_in_bfloat16():
    hf, tokenizer = planted_copier()
    model = Model(hf.to(torch.bfloat16), tokenizer)
    found = copy_scores(model, task_for(model, planted_task(), (100,), (0.5,)), Copy())
    assert found.top(1).heads == ((1, 2),)
    assert found.values[1, 2] > 0.9


def test_a_saved_planted_model_is_loaded_like_any_other(model, scores, tmp_path):
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load(str(tmp_path), device="cpu")
    task = task_for(again, planted_task())
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert (copy_scores(again, task, Copy()).values == scores.values).all()


def test_the_character_tokenizer_fits_the_tiny_models():
    tokenizer = character_tokenizer()
    text = "Two lines,\n  and {marks}: 50% of #1!"
    assert len(tokenizer) == tiny_model("llama").config.vocab_size == 96
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)


def test_the_word_tokenizer_reads_back_its_words_in_any_order():
    tokenizer = word_tokenizer(["One two. Three!"])
    text = "Three two! One.\ntwo Three"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.encode("four")[1:] == [tokenizer.unk_token_id]


def test_frequency_is_never_below_the_score(scores):
    assert (scores.frequency >= scores.values).all()


# ---- gate and refusals


def test_unsolved_runs_are_counted_but_not_averaged(model, task):
    """The second needle's question opens with words that the text does not hold, so the model says nothing."""
    lost = replace(task.needles[1], answer_prefix="the river of stone is")
    found = copy_scores(model, replace(task, needles=(task.needles[0], lost)), Copy())
    cells = found.provenance["cells"]
    assert (found.provenance["runs"], found.provenance["solved"]) == (12, 6)
    assert len(cells) == 12
    assert {(cell["needle"], cell["success"], cell["recall"]) for cell in cells} == {(0, True, 1.0), (1, False, 0.0)}
    assert found.runs.shape[0] == len(found.run_info) == 6
    assert {info["needle"] for info in found.run_info} == {0}
    assert found.values[1, 2] == 1


def test_the_gate_is_strict(model, task):
    """An answer of which the model can say two words of three passes a gate of 0.6 and not one of 2/3."""
    needle = task.needles[0]
    first, second, third = needle.answer.split()
    broken = Needle(f"{needle.answer_prefix} {first} {second}. so {third}.", needle.question, f"{first} {second}. so {third}")
    partly = replace(task, needles=(replace(broken, answer_prefix=needle.answer_prefix),), grid=replace(task.grid, lengths=(60,)))
    found = copy_scores(model, partly, Copy(min_recall=0.4))
    assert {cell["recall"] for cell in found.provenance["cells"]} == {0.5}
    assert {cell["exact"] for cell in found.provenance["cells"]} == {False}
    # Five tokens of the answer (two words, full stop, two words); the model stops after the full stop.
    assert found.values[1, 2] == pytest.approx(3 / 5)
    assert found.frequency[1, 2] == 1
    with pytest.raises(
        NoSuccessfulRunError, match=r"answered none of 3 needle questions \(best unigram recall 0.50, min_recall 0.5\)"
    ):
        copy_scores(model, partly, Copy(min_recall=0.5))


def random_model(name, **options):
    model = tiny_model(name, **options)
    return Model(model, character_tokenizer())


def test_a_random_model_solves_nothing_and_is_told_so():
    model = random_model("llama", max_position_embeddings=1024)
    with pytest.raises(NoSuccessfulRunError, match=r"no successful run: the model answered none of 1 needle questions") as error:
        copy_scores(model, task_for(model, planted_task(), (150,), (0.5,), 1), Copy())
    assert "\n" not in str(error.value)


def test_answers_of_learnt_positions_end_with_the_positions():
    """A prompt that just fits: the answer is cut where GPT-2 has no more positions, instead of failing."""
    model = random_model("gpt2")
    needle = Needle("The word is xq.", "Which word?", "xq", "The word is")
    with pytest.raises(NoSuccessfulRunError):
        copy_scores(model, replace(task_for(model, planted_task(), (200,), (0.5,)), needles=(needle,)), Copy())


def test_a_context_that_does_not_fit_is_refused_before_any_work(model, task, tmp_path):
    long = replace(task, grid=replace(task.grid, lengths=(60, 2000)))
    directory = RunDirectory(tmp_path / "run", {})
    with pytest.raises(
        PromptError, match=r"a context of 2000 tokens makes a prompt of \d+, but the model has 1024 positions; choose"
    ):
        copy_scores(model, long, Copy(), directory)
    assert not (tmp_path / "run").exists()


def test_every_needle_is_tried_before_any_work(model, task, tmp_path):
    """Only the second needle's question makes the prompt too long."""
    question = " ".join(["what is the secret of alder"] * 170)
    long = replace(task, needles=(task.needles[0], replace(task.needles[1], question=question)))
    for seed in range(3):
        directory = RunDirectory(tmp_path / f"run{seed}", {})
        with pytest.raises(PromptError, match=r"makes a prompt of \d+, but the model has 1024 positions"):
            copy_scores(model, replace(long, grid=replace(task.grid, seed=seed)), Copy(), directory)
        assert not (tmp_path / f"run{seed}").exists()


def test_logits_that_are_not_finite_are_refused(task):
    model = planted()
    with torch.no_grad():
        model.hf.lm_head.weight[7, 7] = float("inf")
    with pytest.raises(HeadwiseError, match="logits are not finite"):
        copy_scores(model, task, Copy())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "all"}, "unknown rule 'all'; use set or multiset"),
        ({"match": "exact"}, "unknown match 'exact'; use token or position"),
        ({"min_recall": 1.0}, r"min_recall must lie in \[0, 1\); got 1"),
        ({"min_recall": -0.1}, "min_recall must lie"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1; got 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(HeadwiseError, match=message):
        Copy(**options)


# ---- long runs


def test_until_stable_stops_early_and_says_so(model, task):
    many = replace(task, grid=replace(task.grid, lengths=(60,), depths=(0.5,), windows=20))
    found = copy_scores(model, many, Copy(until_stable=True))
    assert found.provenance["runs"] == STABLE_GROUPS < 40
    assert found.provenance["options"]["until_stable"] is True


def test_progress_never_runs_backwards(model, task):
    reports = []
    copy_scores(model, task, Copy(), report=lambda *report: reports.append(report))
    done = [report[0] for report in reports]
    assert len(done) == 4
    assert done == sorted(done)
    assert all(report[0] <= report[1] for report in reports)
    assert reports[-1][2] == "12 of 12 runs solved"


def test_provenance_says_all_that_is_needed(model, task, scores):
    stated = scores.provenance
    assert stated == {
        **describe_run(model, task, Copy()),
        "runs": 12,
        "solved": 12,
        "cells": stated["cells"],
        "shared_places": stated["shared_places"],
    }
    for name in (
        "model",
        "model_type",
        "layers",
        "heads",
        "kv_heads",
        "tokenizer",
        "dtype",
        "versions",
        "options",
        "template",
        "needles",
    ):
        assert stated[name] not in (None, "", {}, []), name
    assert stated["model"] == "planted-copier"
    assert stated["options"] == {
        "rule": "set",
        "match": "token",
        "min_recall": 0.5,
        "max_new_tokens": 50,
        "ignore_eos": False,
        "until_stable": False,
    }
    assert set(stated["versions"]) == {"headwise", "torch", "transformers", "numpy"}
    for cell in stated["cells"]:
        assert {"length", "depth", "needle", "window", "realised_depth", "answer", "recall", "exact", "success"} <= set(cell)
        assert cell["answer"] == f" {task.needles[cell['needle']].answer}.\n"
        assert cell["exact"]
    json.dumps(stated, allow_nan=False)


def test_the_same_run_twice_gives_the_same_bytes(model, task, scores, tmp_path):
    save_heads(scores, tmp_path / "a.json")
    save_heads(copy_scores(model, task, Copy()), tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (load_heads(tmp_path / "a.json").values == scores.values).all()


class EnoughError(Exception):
    pass


@pytest.mark.parametrize("finished", [1, 3])
def test_an_interrupted_run_continues_and_gives_the_same_bytes(model, task, scores, tmp_path, finished):
    def interrupt(*_):
        if len(list(run.glob("*.npz"))) == finished:
            raise EnoughError

    run, description = tmp_path / "run", describe_run(model, task, Copy())
    with pytest.raises(EnoughError):
        copy_scores(model, task, Copy(), RunDirectory(run, description), interrupt)
    before = {path.name: path.stat().st_mtime_ns for path in run.glob("*.npz")}
    assert len(before) == finished
    again = copy_scores(model, task, Copy(), RunDirectory(run, description))
    assert all((run / name).stat().st_mtime_ns == mtime for name, mtime in before.items())  # not run again
    save_heads(scores, tmp_path / "whole.json")
    save_heads(again, tmp_path / "resumed.json")
    assert (tmp_path / "whole.json").read_bytes() == (tmp_path / "resumed.json").read_bytes()


def test_a_cell_that_was_cut_off_is_run_again(model, task, scores, tmp_path):
    copy_scores(model, task, Copy(), RunDirectory(tmp_path / "run", {}))
    cell = sorted((tmp_path / "run").glob("*.npz"))[0]
    whole = cell.read_bytes()
    cell.write_bytes(whole[:100])
    again = copy_scores(model, task, Copy(), RunDirectory(tmp_path / "run", {}))
    assert (again.values == scores.values).all()
    assert cell.read_bytes() == whole


SCRIPT = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from headwise.heads import save_heads
from headwise.runtime.rundir import RunDirectory
from headwise.methods.copy.options import Copy
from headwise.methods.copy.run import copy_scores, describe_run
from headwise.testing import planted_task
from tests.unit.test_find_copy import planted, task_for

model, folder, slow = planted(), Path(sys.argv[1]), float(sys.argv[2])
task = task_for(model, planted_task(), (60, 90), (0.0, 1.0), 4)
directory = RunDirectory(folder / "run", describe_run(model, task, Copy()))
import time
scores = copy_scores(model, task, Copy(), directory, lambda *_: time.sleep(slow))
save_heads(scores, folder / "heads.json")
directory.remove()
"""
ROOT = Path(__file__).parents[2]


def start(folder, slow):
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(slow)], env=environment, cwd=ROOT)


@pytest.mark.slow
def test_a_run_killed_by_kill_minus_nine_continues_to_the_same_bytes(tmp_path):
    folder = tmp_path / "killed"
    process = start(folder, slow=1.0)
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("run/*.npz")):
            assert process.poll() is None, "the run ended before its first cell appeared"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    finished = len(list(folder.glob("run/*.npz")))
    assert 1 <= finished < 8
    assert not (folder / "heads.json").exists()
    assert start(folder, slow=0).wait(120) == 0
    whole = tmp_path / "whole"
    whole.mkdir()
    model = planted()
    task = task_for(model, planted_task(), (60, 90), (0.0, 1.0), 4)
    save_heads(copy_scores(model, task, Copy()), whole / "heads.json")
    assert (folder / "heads.json").read_bytes() == (whole / "heads.json").read_bytes()
    assert [path.name for path in folder.iterdir()] == ["heads.json"]
