"""The options of `headwise.load` are on every command that takes a model, and on no other."""

import json

import pytest
from typer.main import get_command

from headwise.cli.main import app
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

SHARED = ("--trust-remote-code", "--gguf-file", "--packed", "--adapter", "--offline")


def commands(group, name=""):
    for below in group.list_commands(None):
        command = group.get_command(None, below)
        if hasattr(command, "list_commands"):
            yield from commands(command, f"{name} {below}")
        else:
            yield f"{name} {below}".strip(), command


@pytest.mark.parametrize("words", SHARED)
def test_every_command_that_takes_a_model_has_it_once(words):
    found = dict(commands(get_command(app)))
    for _ in range(2):  # asked for again, it is not given again
        for name, command in found.items():
            given = [option for parameter in command.params for option in parameter.opts].count(words)
            assert given == any(parameter.name == "model" for parameter in command.params), name
    for name in ("doctor", "claims list", "claims show", "claims export"):  # the last ones choose results of a model, and load none
        assert words not in str([parameter.opts for parameter in found[name].params]), name


@pytest.fixture
def own(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "own")
    character_tokenizer().save_pretrained(tmp_path / "own")
    (tmp_path / "own" / "own.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'mark')!r}).write_text('ran')\n"
        "from transformers import LlamaConfig\nclass Own(LlamaConfig):\n    model_type = 'own'\n"
    )
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}))
    return tmp_path / "own"


def test_code_runs_only_when_it_is_allowed(own, headwise, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    for arguments, ran in ((["info", own], False), (["info", own, "--trust-remote-code"], True), (["info", own], False)):
        done = headwise(*arguments)
        assert done.code == 2
        assert ("comes with its own Python code" in done.err) is not ran
        assert ("'own' is not known" in done.err) is ran
        assert (tmp_path / "mark").exists() is ran
        (tmp_path / "mark").unlink(missing_ok=True)
