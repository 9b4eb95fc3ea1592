"""Loading: whole checkpoints load, everything else is one clear line; names are suggested without waiting for the hub."""

import json
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from headwise.attention.plan import attached
from headwise.caches.controls import Full
from headwise.caches.kept_cache import KeptCache
from headwise.evaluation.reading import continuation
from headwise.heads import HeadwiseError, UnsupportedModelError
from headwise.models import names
from headwise.models.families import fault_of_numbers
from headwise.models.load import load
from headwise.models.model import Model, as_model
from headwise.models.names import bundled_names, label
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise.testing.tokenizers import character_tokenizer, word_tokenizer
from tests.helpers import refused_to_load as refused

QUERY = "model.layers.{}.self_attn.q_proj.weight"


def saved(folder, family="llama", tokenizer=None, **options):
    model = tiny_model(family, **options)
    model.save_pretrained(folder)
    (tokenizer or character_tokenizer()).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    saved(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "tiny-llama"))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_whole_checkpoints_load_without_a_word(family, tied, tmp_path, capfd):
    model = saved(tmp_path / "one", family, tie_word_embeddings=tied)
    capfd.readouterr()
    again = load(str(tmp_path / "one"), "cpu")
    ids = torch.arange(2, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.hf(ids).logits, model(ids).logits)
    assert "MISSING" not in "".join(capfd.readouterr())


def test_missing_tensors_are_named(folder):
    edit_weights(folder, lambda weights: weights.pop(QUERY.format(2)))
    refused(folder, f"lacks {QUERY.format(2)};", "tiny-llama")


def test_at_most_three_of_many_are_named(folder):
    edit_weights(folder, lambda weights: [weights.pop(QUERY.format(layer)) for layer in range(4)])
    refused(folder, ", ".join(QUERY.format(i) for i in range(3)) + " and 1 more")


def test_left_over_tensors_are_named(folder):
    edit_weights(folder, lambda weights: weights.update({"model.layers.0.self_attn.z_proj.weight": torch.zeros(2)}))
    refused(folder, "holds tensors that this model does not have: model.layers.0.self_attn.z_proj.weight")


def test_tensors_of_another_shape_are_named(folder):
    edit_weights(folder, lambda weights: weights.update({QUERY.format(1): torch.zeros(3, 4)}))
    refused(folder, f"{QUERY.format(1)} has shape 3x4, the model has 128x64")


def test_a_model_without_its_output_projection_is_refused_unless_it_is_tied(folder, tmp_path):
    edit_weights(folder, lambda weights: weights.pop("lm_head.weight"))
    refused(folder, "lacks lm_head.weight")
    saved(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    load(str(tmp_path / "tied"), "cpu")


def test_stale_buffers_of_old_checkpoints_do_no_harm(folder):
    edit_weights(folder, lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}))
    load(str(folder), "cpu")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def pointer(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


@pytest.mark.parametrize(
    ("file", "damage", "parts"),
    [
        ("model.safetensors", truncated, ["model.safetensors is cut off"]),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:20]), ["model.safetensors is cut off"]),
        ("model.safetensors", pointer, ["model.safetensors is a git-LFS pointer", "git lfs pull"]),
        (
            "model.safetensors",
            lambda path: path.write_text("<!DOCTYPE html><html>no</html>"),
            ["model.safetensors is a web page"],
        ),
        ("model.safetensors", lambda path: path.write_bytes(b""), ["model.safetensors is empty"]),
        ("model.safetensors", Path.unlink, ["holds no weights (model.safetensors)"]),
        ("config.json", pointer, ["config.json is a git-LFS pointer"]),
        ("config.json", lambda path: path.write_text("{"), ["config.json is not JSON"]),
        ("config.json", lambda path: path.write_text("[" * 100_000), ["config.json is not JSON"]),
        ("config.json", Path.unlink, ["the folder holds no config.json"]),
        ("config.json", lambda path: path.write_text("{}"), ["cannot load model"]),
        ("tokenizer.json", pointer, ["tokenizer.json is a git-LFS pointer"]),
        ("tokenizer.json", lambda path: path.write_text("{"), ["tokenizer.json is not JSON"]),
        ("tokenizer.json", lambda path: path.write_text("{}"), ["its tokenizer is broken"]),
    ],
)
def test_damaged_files_are_named(folder, file, damage, parts):
    damage(folder / file)
    refused(folder, *parts)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"max_position_embeddings": -5}, "max_position_embeddings is -5"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta is 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta is -1.0"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps is 0.0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ],
)
def test_numbers_with_which_no_model_works_are_refused(folder, change, part):
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "cannot be right", part)


def test_the_rotations_of_every_kind_of_layer_are_looked_at():
    config = tiny_model("gemma3_text").config
    assert fault_of_numbers(config) is None
    config.rope_parameters["sliding_attention"]["rope_theta"] = 0.0
    assert fault_of_numbers(config) == "rope_theta is 0.0; a number above 0 is expected"


def test_a_shard_that_is_not_there_is_named(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    character_tokenizer().save_pretrained(tmp_path / "parts")
    load(str(tmp_path / "parts"), "cpu")
    shard = sorted((tmp_path / "parts").glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(tmp_path / "parts", f"names files that are not there: {shard.name}")
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("[]")
    refused(tmp_path / "parts", "model.safetensors.index.json is no list of weight files")


def test_a_folder_without_tokenizer_is_refused(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, "holds no tokenizer (tokenizer.json)")


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder):
    word_tokenizer([" ".join(f"word{i}" for i in range(100))]).save_pretrained(folder)
    refused(folder, "tokens beyond the 96 rows of the embedding", "with id 96")


def test_markers_beyond_the_embedding_that_text_never_holds_are_no_fault(folder):
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    load(str(folder), "cpu")
    tokenizer.add_special_tokens({"bos_token": "<start>"})
    tokenizer.save_pretrained(folder)
    refused(folder, "'<start>' with id 97")


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_template_that_cannot_be_read_is_refused(folder, file):
    broken = "{% for m in messages %}{{ m.content }}"
    if file.endswith("json"):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {"chat_template": broken}))
    else:
        (folder / file).write_text(broken)
    refused(folder, "the chat template of", "line 1")


def test_a_template_that_refuses_one_dialogue_is_kept(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('a system turn is needed') }}")
    load(str(folder), "cpu")


CODE = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\n"
CODE += "from transformers import LlamaConfig\nclass Own(LlamaConfig):\n    model_type = 'own'\n"


def test_code_of_a_model_is_never_run_unasked(folder, tmp_path, monkeypatch):
    """transformers would ask on the terminal; nobody may answer for the user."""
    mark = tmp_path / "mark"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    refused(folder, "comes with its own Python code", "trust_remote_code=True", "--trust-remote-code")
    assert not mark.exists()
    refused(folder, "model type 'own' is not known", trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize(
    ("family", "reason"), [("mamba", "state-space model"), ("deepseek_v3", "MLA"), ("falcon_h1", "recurrent"), ("t5", "encoder")]
)
def test_families_that_cannot_work_are_refused_by_name(folder, family, reason):
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(UnsupportedModelError, match=reason):
        load(str(folder), "cpu")


# Names


@pytest.fixture
def online(monkeypatch):
    """A hub that may be asked, but does not answer: the port takes connections and stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(names, "PATIENCE", 0.5)
        yield


@pytest.mark.parametrize("slip", ["lab-6n", "Lab-6M", "lab6m", "LAB-6M"])
def test_a_mistyped_name_is_answered_without_the_hub(slip, online):
    start = time.perf_counter()
    refused(slip, f"unknown model {slip!r}", f"did you mean {bundled_names()[0]}?")
    assert time.perf_counter() - start < 0.3


@pytest.mark.parametrize("name", ["gpt-nothing-near", "owner/not-there"])
@pytest.mark.slow
def test_a_hub_that_does_not_answer_costs_seconds_not_half_a_minute(name, online):
    start = time.perf_counter()
    refused(name, f"unknown model {name!r}", "the hub cannot be reached")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("files", "downloaded"),
    [({"config.json"}, None), ({"adapter_config.json"}, "there"), ({"adapter_config.json", "config.json"}, None)],
)
def test_adapters_of_the_hub_are_downloaded_and_models_left_to_transformers(online, monkeypatch, files, downloaded):
    answer = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: answer)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: "there")
    found = names.folder_of("owner/not-there")
    assert found == (None if downloaded is None else Path(downloaded))


def test_what_the_hub_says_is_told_in_one_line(online, monkeypatch):
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    for kind, part in (
        (RepositoryNotFoundError, "the hub has no such model"),
        (RevisionNotFoundError, "has no revision 'v9'"),
        (GatedRepoError, "users who accepted its terms"),
    ):
        error = kind.__new__(kind)  # their arguments differ between releases of the hub's library
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        refused("owner/not-there", part, revision="v9")


@pytest.mark.slow
def test_a_relative_of_a_known_model_is_no_slip(online, monkeypatch):
    monkeypatch.setattr(names, "_known", lambda: {"gpt2": "gpt2"})
    refused("gpt2-xl", "the hub cannot be reached", "did you mean gpt2?")
    refused("gpt-2", "not in the hub's cache; did you mean gpt2?")


@pytest.mark.parametrize("name", ["gpt-nothing-near", "owner/not-there"])
def test_offline_the_hub_is_not_asked(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    start = time.perf_counter()
    refused(name, f"unknown model {name!r}", "HF_HUB_OFFLINE")
    assert time.perf_counter() - start < 0.5


@pytest.mark.slow
def test_models_of_the_hubs_cache_load_by_their_id_and_are_suggested(folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    place = tmp_path / "hub" / "models--owner--tiny-thing"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    shutil.copytree(folder, place / "snapshots" / commit)
    for module in ("huggingface_hub.constants", "transformers.utils.hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert names.folder_of("owner/tiny-thing") == place / "snapshots" / commit
    monkeypatch.setattr("huggingface_hub.utils._http.http_backoff", lambda *_, **__: pytest.fail("the hub was asked"))
    cached = load("owner/tiny-thing", "cpu")
    assert (cached.name, cached.hf.config._commit_hash) == ("owner/tiny-thing", commit)
    assert load(str(place / "snapshots" / commit), "cpu").name == "owner/tiny-thing"
    refused("tiny-think", "did you mean owner/tiny-thing?")


@pytest.mark.parametrize("name", ["/no/such", "./no", "a/b/c", "", " ", "~/no"])
def test_paths_that_are_not_there_are_refused(name):
    refused(name, "no such model folder", repr(name))


def test_a_file_is_no_folder(folder):
    refused(folder / "config.json", "config.json' is a text file, not a model", "headwise models list")
    for name, content in (("cut.txt", b"x" * 4095 + "ä".encode()), ("none.txt", b"")):
        (folder / name).write_bytes(content)
        refused(folder / name, f"{name}' is a text file, not a model")
    (folder / "data").write_bytes(bytes(range(256)))
    refused(folder / "data", "data' is a file, not a model")


def test_a_folder_without_a_model_is_told_as_what_it_is(tmp_path):
    refused(tmp_path, "it is an empty folder", "config.json, tokenizer and weights")
    (tmp_path / "notes.txt").write_text("nothing")
    refused(tmp_path, "the folder holds no config.json")


@pytest.mark.parametrize("name", ["what is this?", "-x", "a..b"])
def test_what_is_no_name_at_all_is_refused(name):
    refused(name, repr(name))


# What results call a model


def test_results_carry_the_name_and_never_the_path(folder, monkeypatch):
    assert load(str(folder), "cpu").name == "tiny-llama"
    assert load(str(folder) + "/", "cpu").name == "tiny-llama"
    assert load(str(folder), "cpu", name="mine").name == "mine"
    assert Model(AutoModelForCausalLM.from_pretrained(folder)).name == "tiny-llama"
    monkeypatch.chdir(folder)
    assert load(".", "cpu").name == "tiny-llama"
    assert label("owner/name") == "owner/name"
    assert as_model(tiny_model("llama")).name == "llama"


@pytest.mark.parametrize("thing", ["lab-6m", 3, None, torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_refused_in_one_line(thing):
    with pytest.raises(HeadwiseError, match=r"a headwise\.Model or a model of transformers is needed; got"):
        as_model(thing)


def test_a_model_without_its_head_is_refused():
    with pytest.raises(UnsupportedModelError, match="load the model with AutoModelForCausalLM"):
        as_model(tiny_model("llama").model)


def test_the_saved_dtype_can_be_kept(tmp_path):
    model = tiny_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    character_tokenizer().save_pretrained(tmp_path / "half")
    assert load(str(tmp_path / "half"), "cpu").hf.dtype == torch.float32
    assert load(str(tmp_path / "half"), "cpu", "saved").hf.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(tmp_path / "half").encode("a") == character_tokenizer().encode("a")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_give_no_answer(folder, value):
    def spoil(weights):
        weights[QUERY.format(1)][3, 4] = value

    edit_weights(folder, spoil)
    model = load(str(folder), "cpu")
    with attached(model):
        cache = KeptCache(model, Full())
        logits = cache.prefill(torch.arange(5, 25)[None])
        with pytest.raises(HeadwiseError, match="logits are not finite"):
            continuation(model.hf, cache, logits, (), 4)


def test_links_in_a_circle_are_no_models_and_hide_no_fault(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path)
    refused(tmp_path / "loop", "no such model folder")
    refused("smolm2", "did you mean smollm2")
    refused("smollm2 ", "did you mean smollm2")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_files_that_hold_other_json_than_an_object_are_named(folder, file):
    (folder / file).write_text("[5]")
    refused(folder, f"{file} is no JSON object")
