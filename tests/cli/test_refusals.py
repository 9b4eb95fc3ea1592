"""Wrong input: one clear line, exit status 2, nothing written."""

import errno
import json
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig

from headwise.heads import HeadScores, save_heads


def check_refused(done, *parts):
    assert done.code == 2, (done.code, done.err)
    lines = [line for line in done.err.splitlines() if line.strip() and "━" not in line]  # the rest of a progress bar aside
    assert len(lines) == 1, done.err
    for part in ("headwise: error:", *parts):
        assert part in lines[0]


@pytest.fixture
def nothing_written(tmp_path):
    """No file may appear in the working folder (files of the test itself live in subfolders made before)."""
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    yield
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after <= before | set(tmp_path.glob("given/**/*")), after - before


@pytest.fixture
def given(tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["detect", "/no/such/model"], ["no such model folder", "/no/such/model"]),
        (["detect", "MODEL", "--lengths", "0"], ["--lengths takes positive whole numbers", "'0'"]),
        (["detect", "MODEL", "--lengths", "many"], ["--lengths takes positive whole numbers"]),
        (["detect", "MODEL", "--lengths", "5000"], ["5000 tokens", "1024 positions", "choose --lengths of at most"]),
        (["detect", "MODEL", "--lengths", "5"], ["no room for the needle"]),
        (["detect", "MODEL", "--depths", "0"], ["depths must be a whole number of at least 1"]),
        (["detect", "MODEL", "--windows", "0"], ["windows must be a whole number of at least 1"]),
        (["detect", "MODEL", "--score", "query"], ["No such option: --score"]),
        (["detect", "qwery", "MODEL"], ["unknown detector 'qwery'", "query"]),
        (["detect", "semantik"], ["unknown detector 'semantik'", "semantic"]),
        (["detect", "MODEL", "--seed", "-1"], ["seed must be a whole number of at least 0; got -1"]),
        (["detect", "MODEL", "--rule", "bag"], ["unknown rule 'bag'", "set or multiset"]),
        (["detect", "MODEL", "--match", "near"], ["unknown match 'near'"]),
        (["detect", "MODEL", "--min-recall", "1.5"], ["min_recall must lie in [0, 1)"]),
        (["detect", "MODEL", "--dtype", "int3"], ["unknown dtype 'int3'"]),
        (["detect", "MODEL", "--device", "tpu"], ["unknown device 'tpu'"]),
        (["detect", "MODEL", "--chat"], ["no chat template"]),
        (["detect", "MODEL", "--template", "{context} {why}"], ["unknown field {why}"]),
        (["detect", "MODEL", "--template", "{question}"], ["must contain {context} exactly once"]),
        (["detect", "MODEL", "--needles", "/no/needles"], ["cannot read needles from /no/needles"]),
        (["detect", "MODEL", "--haystack", "/no/hay"], ["no such haystack folder"]),
        (["show", "/no/file.json"], ["no such head file"]),
        (["show", "FILE", "--format", "gif"], ["unknown picture format 'gif'"]),
        (["ablate", "MODEL", "--heads", "/no/file.json"], ["no such head file"]),
        (["ablate", "MODEL", "--heads", "FILE", "--top", "99"], ["top 99 asked for", "8 heads"]),
        (["ablate", "MODEL", "--heads", "FILE", "--mode", "blur"], ["mode", "'blur'", "zero"]),
        (["ablate", "MODEL", "--heads", "FILE", "--scope", "some"], ["scope", "'some'", "answer"]),
        (["ablate", "MODEL", "--heads", "FILE", "--controls", "0"], ["controls"]),
        (["ablate", "MODEL", "--heads", "OTHER", "--top", "1"], ["2 layers x 3 heads", "2 x 4"]),
        (["ablate", "MODEL", "--heads", "FILE", "--limit", "5"], ["--limit goes with --task lm-eval:NAME"]),
        (["ablate", "MODEL", "--heads", "FILE", "--include-path", "x"], ["--include-path goes with --task lm-eval:NAME"]),
        (["ablate", "MODEL", "--heads", "FILE", "--task", "lm-eval:x", "--chat"], ["--chat goes with --task needle"]),
        (["ablate", "MODEL", "--heads", "FILE", "--task", "lm-eval:x", "--depths", "3"], ["--depths goes with --task needle"]),
        (["needle", "MODEL", "--max-new-tokens", "0"], ["max_new_tokens must be a whole number of at least 1; got 0"]),
        (["needle", "MODEL", "--depths", "100000000"], ["at most 1000; got 100000000"]),
        (["bench", "cache", "MODEL", "--methods", ""], ["--methods names no method"]),
        (["show", "FILE", "--device", "cpu"], ["--device is about the model of --model"]),
        (["select", "score", "x", "-o", "y", "--heads", "FILE", "--top", "2", "--share", "0.1"], ["--top or --share, not both"]),
        (["select", "score", "x", "-o", "y", "--heads", "FILE", "--gpus", "2"], ["--gpus goes with --runner ray"]),
        (["select", "score", "x", "-o", "y", "--heads", "FILE", "--sample", "2"], ["--sample goes with --estimate"]),
        (["select", "choose", "x", "--inputs", "y"], ["--inputs says where --copy finds the rows"]),
        (["rank", "MODEL", "--beir", "x", "--top", "4"], ["--top chooses among the heads of --heads FILE"]),
        (["rank", "MODEL", "--beir", "x", "--official", "--span", "query"], ["--span is settled by --official"]),
        (["rank", "MODEL", "--beir", "x", "--official", "--order", "given"], ["--order is settled by --official"]),
        (["export", "MODEL", "--heads", "FILE", "--mode", "mean", "--top", "1", "-o", "out"], ["'mean'", "zero and uniform"]),
        (["export", "MODEL", "--heads", "OTHER", "--top", "1", "-o", "out"], ["2 layers x 3 heads", "2 x 4"]),
        (["convert", "FILE", "x.txt", "--to", "xml"], ["unknown head format 'xml'"]),
        (["info", "/no/such/model"], ["no such model folder"]),
    ],
    ids=lambda value: " ".join(value[:5]) if isinstance(value, list) else None,
)
def test_refused(planted, headwise, given, arguments, parts):
    values = torch.arange(8.0).reshape(2, 4).numpy().astype(float)
    save_heads(HeadScores(values, "copy"), given / "file.json")
    save_heads(HeadScores(values[:, :3], "copy"), given / "other.json")
    names = {"MODEL": planted.model, "FILE": given / "file.json", "OTHER": given / "other.json"}
    own = planted.own if arguments[:2] == ["detect", "MODEL"] else []
    own = [] if "--needles" in arguments or "--haystack" in arguments else own
    check_refused(headwise(*(names.get(a, a) for a in arguments), *own), *parts)


@pytest.mark.usefixtures("nothing_written")
def test_a_model_without_attention_heads(headwise, given):
    MambaConfig(num_hidden_layers=1, hidden_size=16, vocab_size=32).save_pretrained(given)
    check_refused(headwise("detect", given), "'mamba'", "without attention heads")


@pytest.mark.usefixtures("nothing_written")
def test_a_needle_that_does_not_survive_tokenisation(planted, headwise, given):
    row = {"needle": "the secret of elder is zyzzyva quux.", "question": "what is the secret?", "answer": "zyzzyva quux"}
    (given / "needles.jsonl").write_text(json.dumps(row))
    done = headwise(
        "detect", planted.model, "--needles", given / "needles.jsonl", "--haystack", planted.haystack, "--lengths", "90"
    )
    check_refused(done, "does not survive tokenisation")


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize(("text", "part"), [("{}", "line 1"), ("not json", "no valid JSON"), ("", "holds no needle")])
def test_a_broken_needle_file(planted, headwise, given, text, part):
    (given / "needles.jsonl").write_text(text)
    check_refused(headwise("detect", planted.model, "--needles", given / "needles.jsonl"), part)


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.slow
def test_no_successful_run(planted, headwise, given):
    model = AutoModelForCausalLM.from_pretrained(planted.model)
    torch.nn.init.zeros_(model.model.layers[1].self_attn.o_proj.weight)
    model.save_pretrained(given / "model")
    AutoTokenizer.from_pretrained(planted.model).save_pretrained(given / "model")
    done = headwise("detect", given / "model", *planted.own, "--lengths", "90", "--depths", "2", "--max-new-tokens", "5")
    check_refused(done, "no successful run")


@pytest.mark.usefixtures("nothing_written")
def test_nan_logits(planted, headwise, given):
    model = AutoModelForCausalLM.from_pretrained(planted.model)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    model.save_pretrained(given / "model")
    AutoTokenizer.from_pretrained(planted.model).save_pretrained(given / "model")
    check_refused(headwise("detect", given / "model", *planted.own, "--lengths", "90"), "not finite")


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"headwise_schema": 1}', '{"headwise_schema": 99}'])
def test_a_corrupt_head_file(headwise, given, text):
    (given / "heads.json").write_text(text)
    check_refused(headwise("show", given / "heads.json"), "heads.json")


@pytest.mark.slow
def test_an_existing_result_is_not_overwritten_unless_asked(planted, headwise, heads):
    before = heads.read_bytes()
    again = ["detect", planted.model, *planted.own, "--lengths", "90", "--depths", "1", "-o", heads]
    check_refused(headwise(*again), "exists", "--overwrite")
    assert heads.read_bytes() == before
    assert headwise(*again, "--overwrite").code == 0
    assert heads.read_bytes() != before


def test_a_missing_extra_is_named(planted, headwise, heads, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    done = headwise("ablate", planted.model, "--heads", heads, "--top", "1", "--task", "lm-eval:anything")
    check_refused(done, "lm-eval", "pip install 'headwise[lm-eval]'")


def test_a_full_disk(planted, headwise, monkeypatch, tmp_path):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = headwise("detect", planted.model, *planted.own, "--lengths", "90", "--depths", "1", "-o", tmp_path / "x.json")
    check_refused(done, "No space left on device")
    assert not list(tmp_path.rglob("*.json"))
    assert not list(tmp_path.rglob("*.tmp"))
