"""GGUF files on the command line: the bundled model written as one gives the same heads."""

import json

import pytest

pytest.importorskip("gguf", reason="the extra gguf is not installed")

from headwise.models.load import load
from tests import gguf_files as files

SMALL = ("--lengths", "200", "--depths", "2", "--windows", "1")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The bundled lab model as a GGUF file."""
    path = tmp_path_factory.mktemp("gguf") / "lab-6m.F32.gguf"
    model = load("lab-6m", "cpu")
    files.write_gguf(path, "llama", model.hf, tokenizer=model.tokenizer, facts={"tokenizer.ggml.pre": "smollm"})
    return path


@pytest.mark.slow
def test_detection_on_a_file_finds_the_heads_of_the_original(file, headwise, tmp_path):
    found = {}
    for name, model in (("file", [file]), ("folder", [file.parent, "--gguf-file", file.name]), ("original", ["lab-6m"])):
        done = headwise("detect", *model, *SMALL, "-o", tmp_path / f"{name}.json", "--json")
        assert done.code == 0, done.err
        assert "de-quantizing" not in done.err
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    for name in ("file", "folder"):
        for layer, expected in zip(found[name]["values"], found["original"]["values"], strict=True):
            assert layer == pytest.approx(expected, abs=1e-5)
        assert found[name]["provenance"]["source"] == {"format": "GGUF", "file": "lab-6m.F32.gguf", "quantization": "F32"}
    assert found["file"]["provenance"]["model"] == "lab-6m.F32"
    assert "source" not in found["original"]["provenance"]


@pytest.mark.slow
def test_refusals_are_one_line(file, headwise, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:-5])
    for arguments, part in (
        ([cut], "is cut off"),
        ([file, "--packed"], "cannot stay packed"),
        ([file, "--gguf-file", "x.gguf"], "leave --gguf-file"),
        (["lab-6m", "--gguf-file", "x.gguf"], "no file 'x.gguf'"),
        (["owner/none", "--offline"], "--offline forbids asking the hub"),
    ):
        done = headwise("info", *arguments)
        assert (done.code, done.out) == (2, ""), done
        assert part in done.err
        assert done.err.count("\n") == 1
    assert headwise("info", "lab-6m").code == 0  # options of one call do not stay for the next
