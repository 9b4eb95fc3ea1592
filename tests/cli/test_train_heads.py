"""`headwise train mudaf` and `headwise train rank` on a small lab model."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import headwise as hw
from headwise.models.names import label, names_of
from tests.cli.test_refusals import check_refused

STEPS = ["--steps", "2", "--accumulate", "1", "--save-every", "1", "--length", "256", "--rank", "2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    town = "The town of {} lies by a river and has a mill"
    rows = [
        {"query": f"Where is the mill of {a}?", "passages": [town.format(a), town.format(b), town.format(c)], "gold": [0], "answers": ["by a river"]}
        for a, b, c in (("Aro", "Bel", "Cor"), ("Dun", "Elm", "Fay"), ("Gil", "Hay", "Ivo"))
    ]
    rows.append(rows[0] | {"gold": []})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scores = hw.HeadScores(torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).numpy(), "mdqa", 1, provenance={"model": "lab-6m"})
    scores.save(folder / "heads.json")
    return folder


def command(kind, files, *more):
    heads = [] if "0" in more and more[more.index("0") - 1] == "--alpha" else ["--heads", str(files / "heads.json")]
    return ["train", kind, "lab-6m", "--data", str(files / "data.jsonl"), *heads, *STEPS, *more]


@pytest.mark.parametrize(
    ("kind", "more", "parts"),
    [
        ("mudaf", ["--top", "2"], {"answer", "heads"}),
        ("mudaf", ["--top", "2", "--mode", "separate", "--sim", "concat", "--batch", "2"], {"answer", "heads"}),
        ("mudaf", ["--top", "2", "--pool", "lse", "--rows", "--parts", "query,key", "--pick", "random"], {"answer", "heads"}),
        ("mudaf", ["--alpha", "0", "--checkpointing"], set()),
        ("mudaf", ["--alpha", "1", "--pick", "bottom", "--checkpointing"], {"heads"}),
        ("mudaf", ["--checkpointing", "--passages", "4"], {"answer", "heads"}),
        ("rank", ["--top", "4"], {"heads"}),
    ],
)
@pytest.mark.slow
def test_an_adapter_and_a_checkpoint_are_written(headwise, files, tmp_path, kind, more, parts):
    out = tmp_path / "out"
    done = headwise(*command(kind, files, "-o", str(out), "--json", *more))
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert [row["step"] for row in told["curve"]] == [1, 2]
    assert set(told["curve"][0]) - {"step", "loss", "grad_norm"} == parts
    assert told["counts"]["no_gold"] == 1
    story = json.loads((out / "training.json").read_text())
    assert story["curve"] == told["curve"]
    assert story["model"] == "lab-6m"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # the run is gone
    assert {label(str(out / part)) for part in ("adapter", "merged")} == {"out"}
    (out / "mine").mkdir()
    assert label(str(out / "mine")) == "mine"  # not written by headwise
    assert names_of(hw.load(str(out / "merged"))) == {"out", "lab-6m"}  # so that heads of the model it was made from are its own
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    adapted, merged, base = (hw.load(name) for name in (str(out / "adapter"), str(out / "merged"), "lab-6m"))
    with torch.no_grad():
        one, two, three = (model.hf(ids).logits for model in (adapted, merged, base))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert not torch.equal(two, three)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--alpha", "1.5"], "--alpha must lie in"),
        (["--sim", "cosine"], "per_head"),
        (["--pool", "lse", "--temperature", "0.1"], "leave temperature out"),
        (["--mode", "both"], "in_context"),
        (["--rows"], "set parts to query"),
        (["--parts", "mlp"], "parts must name"),
        (["--pick", "best"], "--pick takes"),
        (["--top", "65"], "64"),
        (["--rate", "2"], "rate must lie"),
        (["--length", "4096"], "positions of lab-6m"),
        (["--length", "16"], "are too long"),
        (["--passages", "1"], "at least 2 passages"),
        (["--data", "nothing.jsonl"], "cannot read queries"),
        (["--heads", "nothing.json"], "no such head file"),
    ],
)
def test_bad_input_is_refused_in_one_line(headwise, files, tmp_path, more, message):
    check_refused(headwise(*command("mudaf", files, "-o", str(tmp_path / "out"), *more)), message)
    assert not any(tmp_path.iterdir())


def test_what_has_no_weight_is_refused(headwise, files, tmp_path):
    plain = command("mudaf", files, "-o", str(tmp_path / "out"), "--alpha", "0")
    for more in (["--heads", str(files / "heads.json")], ["--top", "9"], ["--sim", "concat"]):
        check_refused(headwise(*plain, *more), f"{more[0]} is about the loss on the heads, which has no weight with --alpha 0")


@pytest.mark.slow
def test_ranking_needs_no_answers_and_long_examples_no_option(headwise, files, tmp_path):
    rows = [json.loads(line) for line in (files / "data.jsonl").read_text().splitlines()]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps({key: value for key, value in row.items() if key != "answers"}) for row in rows))
    told = command("rank", files, "--top", "2", "-o", str(tmp_path / "out"), "--data", str(data), "--json")
    place = told.index("--length")
    done = headwise(*told[:place], *told[place + 2 :])
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "out" / "training.json").read_text())["tuning"]["length"] == 1280  # the context of lab-6m
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])


def test_heads_are_needed_and_folders_are_not_replaced(headwise, files, tmp_path):
    data = ["train", "mudaf", "lab-6m", "--data", str(files / "data.jsonl"), *STEPS, "-o", str(tmp_path / "out")]
    check_refused(headwise(*data), "--heads is needed")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    check_refused(headwise(*data, "--alpha", "0"), "not an empty folder")
    check_refused(headwise("train", "rank", *data[2:], "--alpha", "0", "--heads", str(files / "heads.json")), "--alpha must lie in")


def in_two_processes(*words):
    """headwise by torchrun."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "headwise"]
    both = subprocess.run([*start, *map(str, words)], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert both.returncode == 0, both.stderr[-2000:]


def check_same_weights(first, second):
    one, two = load_file(first), load_file(second)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(headwise, files, tmp_path):
    """torchrun: each process reads half of every step's examples."""
    told = command("mudaf", files, "--top", "2", "--json", "--device", "cpu")
    done = headwise(*told, "-o", str(tmp_path / "one"), "--accumulate", "2")
    assert done.code == 0, done.err
    in_two_processes(*told, "-o", str(tmp_path / "two"))
    check_same_weights(*(tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("one", "two")))


@pytest.mark.slow
def test_a_training_killed_at_once_ends_with_the_same_bytes(headwise, files, tmp_path):
    told = [*command("mudaf", files, "--top", "2", "--json"), "--steps", "6"]
    done = headwise(*told, "-o", str(tmp_path / "whole"))
    assert done.code == 0, done.err
    again = [*told, "-o", str(tmp_path / "killed")]
    # The tests run on one thread (conftest.py); sums of two threads differ in their last bits on some processors.
    alone = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "headwise", *again], **alone) as process:
        mark = tmp_path / "killed.run" / "states" / "checkpoint-2" / "complete"
        while not mark.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert not (tmp_path / "killed").exists()
    check_refused(headwise(*again, "--seed", "1"), "belongs to a run with other options")
    done = headwise(*again)
    assert done.code == 0, done.err
    for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors", "training.json", "adapter/adapter_config.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]
