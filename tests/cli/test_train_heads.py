"""`headwise train mudaf` and `headwise train rank` on a small lab model."""

import json

import pytest
import torch

import headwise as hw
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
    return ["train", kind, "lab-6m", "--data", str(files / "data.jsonl"), "--heads", str(files / "heads.json"), *STEPS, *more]


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
        (["--length", "16"], "gold too long"),
        (["--passages", "1"], "at least 2 passages"),
        (["--data", "nothing.jsonl"], "cannot read queries"),
        (["--heads", "nothing.json"], "no such head file"),
    ],
)
def test_bad_input_is_refused_in_one_line(headwise, files, tmp_path, more, message):
    check_refused(headwise(*command("mudaf", files, "-o", str(tmp_path / "out"), *more)), message)
    assert not any(tmp_path.iterdir())


def test_heads_are_needed_and_folders_are_not_replaced(headwise, files, tmp_path):
    data = ["train", "mudaf", "lab-6m", "--data", str(files / "data.jsonl"), *STEPS, "-o", str(tmp_path / "out")]
    check_refused(headwise(*data), "--heads is needed")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    check_refused(headwise(*data, "--alpha", "0"), "not an empty folder")
    check_refused(headwise("train", "rank", *data[2:], "--alpha", "0", "--heads", str(files / "heads.json")), "--alpha must lie in")
