"""Every script of examples/ runs as it stands, on the bundled model, and prints what its first lines promise."""

import importlib.util
import re
import subprocess
import sys

import pytest

from tests.docs.blocks import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LONGEST = 40  # lines


def run(name, capsys):
    """What the main function of an example prints."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main("lab-6m")
    return capsys.readouterr().out


@pytest.mark.slow
def test_find_and_ablate(capsys):
    said = run("find_and_ablate", capsys)
    assert re.search(r"^unchanged +ground juniper", said, re.M)
    assert re.search(r"^without the weakest +ground juniper", said, re.M)
    assert not re.search(r"^without these heads.*juniper", said, re.M)


@pytest.mark.slow
def test_rank_passages(capsys):
    lines = run("rank_passages", capsys).splitlines()
    assert "Ada has the key" in lines[1]
    assert "A boat came back" in lines[4]


@pytest.mark.slow
def test_compress_a_cache(capsys):
    said = run("compress_a_cache", capsys)
    assert re.search(r"^whole cache +ground juniper", said, re.M)
    assert re.search(r"^HeadKV +ground juniper.*MB for 502 tokens", said, re.M)
    assert not re.search(r"^StreamingLLM.*juniper", said, re.M)


def test_trace_an_answer(capsys):
    said = run("trace_an_answer", capsys)
    drops = {place: float(drop) for place, drop in re.findall(r"^(passage/\d) .* ([+-][\d.]+) nats", said, re.M)}
    assert len(drops) == 3
    assert drops["passage/2"] > 10 > 1 > max(abs(drops["passage/1"]), abs(drops["passage/3"]))
    assert "no probe for lab-6m" in said


@pytest.mark.slow
def test_score_documents(capsys):
    page, twice = (float(score) for score in re.findall(r"score ([\d.]+)$", run("score_documents", capsys), re.M))
    assert twice > 5 * page


@pytest.mark.slow
def test_are_you_sure(capsys):
    said = run("are_you_sure", capsys)
    right = int(re.search(r"^(\d+) of 15 questions are answered right at first", said, re.M)[1])
    assert right >= 10
    shares = re.findall(
        r"^(sure|suggestion) +(right|wrong) +kept +(\d+)% +taken back +(\d+)% +margin ([+-][\d.]+) nats", said, re.M
    )
    assert [row[:2] for row in shares] == [(name, arm) for name in ("sure", "suggestion") for arm in ("right", "wrong")]
    assert all(int(kept) + int(taken) <= 101 for _, _, kept, taken, _ in shares)  # the rest is incoherent; each is rounded
    margins = [float(row[4]) for row in shares]
    assert min(margins[::2]) > 0 > max(margins[1::2])  # right answers are likelier than wrong ones, whatever is said
    assert re.search(r"^kept +'(.*)', challenged \((sure|suggestion)\): '\1'", said, re.M)


@pytest.mark.slow
def test_sparse_decoding(capsys):
    said = run("sparse_decoding", capsys)
    assert re.search(r"^query before +ground juniper\. +reads 13% of the positions", said, re.M)
    assert not re.search(r"^the newest.*juniper", said, re.M)


def test_all_examples_are_tested_short_and_listed():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    short = [path for path in EXAMPLES if path.stem != "convert_stories260k"]  # tests/unit/test_lab.py runs that one
    assert {path.stem for path in short} <= tested
    assert all(len(path.read_text("utf-8").splitlines()) < LONGEST for path in short)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [path.name for path in EXAMPLES if f"examples/{path.name}" not in readme] == []


@pytest.mark.slow
def test_a_missing_checkpoint_is_one_line(tmp_path):
    script = str(ROOT / "examples" / "convert_stories260k.py")
    done = subprocess.run([sys.executable, script, str(tmp_path), str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"{tmp_path} does not hold stories260K.bin and tok512.bin; give the folder of the checkpoint, such as tests/data/stories260K\n"
    )
    assert not (tmp_path / "out").exists()
