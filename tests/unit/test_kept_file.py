"""Compressed caches on disk: they continue bit for bit, belong to one model, and broken files are refused."""

import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from headwise.caches.controls import Full
from headwise.caches.groups import Window
from headwise.caches.kept_cache import compress
from headwise.caches.kept_file import KEY, load_cache, save_cache
from headwise.caches.kept_layer import Keep
from headwise.heads import HeadwiseError
from headwise.methods.adakv.press import AdaKV
from headwise.methods.snapkv.press import SnapKV
from headwise.models.fingerprint import weights_digest
from headwise.models.forward import forward
from headwise.models.model import Model, as_model
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from headwise.testing.tokenizers import word_tokenizer
from tests.helpers import with_cache

PROMPT = 40
SNAP = SnapKV(budget=12, window=4, sinks=2)


class Streams:
    def __init__(self, prefill):
        self.prefill = prefill

    def check(self, layout):
        pass

    def streams(self, layer, layout):
        return [Keep((0,)), Keep((1,), None, Window(3, 6))]

    def kept(self, view):
        return self.streams(view.layer, view.model)


def text(seed, tokens, rows=1):
    return torch.randint(2, 96, (rows, tokens), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture
def saved(model, tmp_path):
    with compress(model, SNAP) as cache:
        cache.prefill(text(1, PROMPT))
        save_cache(cache, tmp_path / "cache.safetensors")
    return tmp_path / "cache.safetensors"


@torch.no_grad()
def goes_on_alike(hf, method, path, rows=1, mask=None, before=0):
    """Save after the prompt and `before` more tokens, load, and continue both: a block, then tokens one by one."""
    with compress(hf, method) as cache:
        cache.prefill(text(2, PROMPT, rows), mask)

        def step(own, new):
            nonlocal mask
            options = {}
            if mask is not None:
                options = {
                    "attention_mask": torch.cat(
                        [mask, torch.ones(rows, own.get_seq_length() - PROMPT + new.shape[1]).long()], dim=1
                    )
                }
                options["position_ids"] = options["attention_mask"].cumsum(dim=1)[:, -new.shape[1] :] - 1
            return hf(input_ids=new, **with_cache(own), **options).logits

        for i in range(before):
            step(cache, text(3 + i, 1, rows))
        save_cache(cache, path)
        model = load_cache(path, hf, method)
        assert model.get_seq_length() == cache.get_seq_length() == PROMPT + before
        for i, tokens in enumerate((0, 5, 1, 1, 3, 1)):
            if tokens:
                new = text(30 + i, tokens, rows)
                assert torch.equal(step(cache, new), step(model, new))
            for row in range(rows):
                held, found = cache.held_positions(row), model.held_positions(row)
                assert all(a.tolist() == b.tolist() for i in held for a, b in zip(held[i], found[i], strict=True))


@pytest.mark.parametrize("family", [family for family in TINY_FAMILIES if as_model(tiny_model(family)).heads.full_layers])
def test_every_family_goes_on_bit_for_bit(family, tmp_path):
    goes_on_alike(tiny_model(family), AdaKV(budget=14, window=4), tmp_path / "cache.safetensors")


@pytest.mark.parametrize("before", [0, 1, 11])
@pytest.mark.parametrize("method", [Full(), SNAP, Streams("dense"), Streams("chunked"), Streams("windowed")])
def test_every_kind_of_group_goes_on_bit_for_bit(model, method, before, tmp_path):
    goes_on_alike(model, method, tmp_path / "cache.safetensors", before=before)
    goes_on_alike(model, method, tmp_path / "rows.safetensors", rows=3, before=before)


@pytest.mark.parametrize("method", [SNAP, Streams("dense"), Streams("windowed")])
def test_padded_rows_go_on_bit_for_bit(model, method, tmp_path):
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :9] = 0
    goes_on_alike(model, method, tmp_path / "cache.safetensors", rows=2, mask=mask, before=2)


@torch.no_grad()
def test_a_loaded_cache_can_be_forked_cropped_and_saved_again(model, saved, tmp_path):
    with compress(model, SNAP):
        cache = load_cache(saved, model, SNAP)
        new = text(5, 3)
        expected = model(input_ids=new, **with_cache(cache.fork())).logits
        model(input_ids=new, **with_cache(cache))
        cache.crop(-3)
        torch.testing.assert_close(model(input_ids=new, **with_cache(cache.fork())).logits, expected)
        save_cache(cache, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_the_file_says_what_it_is_and_holds_no_spare_room(model, saved):
    with safe_open(str(saved), framework="pt") as file:
        about = json.loads(file.metadata()[KEY])
        sizes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    assert about["compressor"] == repr(SNAP)
    assert about["tokens"] == PROMPT
    assert about["belongs"] == {
        "layers": 4, "query heads": 8, "KV heads": 2, "head width": 16, "skipped layers": [], "dtype": "torch.float32",
        "weights": weights_digest(model), "tokenizer": None,
    }  # fmt: skip
    assert set(about) == {"schema", "headwise", "belongs", "method", "compressor", "model", "tokens", "rotary table", "layers"}
    assert sizes["3.0.keys"] == (1, 2, 12, 16)
    assert sizes["3.0.positions"] == (1, 2, 12)


def test_an_existing_file_and_an_unfinished_cache_are_refused(model, saved, tmp_path):
    before = saved.read_bytes()
    with compress(model, SNAP) as cache:
        with pytest.raises(HeadwiseError, match="prefill has ended"):
            save_cache(cache, tmp_path / "other.safetensors")
        cache.prefill(text(1, PROMPT))
        with pytest.raises(HeadwiseError, match="exists; give another name"):
            save_cache(cache, saved)
        with pytest.raises(HeadwiseError, match="could not write"):
            save_cache(cache, saved / "below-a-file")
    assert saved.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["cache.safetensors"]


def nudged():
    """The same model after one more step of training."""
    hf = tiny_model("llama")
    with torch.no_grad():
        hf.model.layers[2].mlp.up_proj.weight += 1e-4
    return hf


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: tiny_model("llama", num_hidden_layers=3), "layers 4, but this model has 3"),
        (lambda: tiny_model("llama", num_key_value_heads=4), "KV heads 2, but this model has 4"),
        (lambda: tiny_model("llama", num_attention_heads=4), "query heads 8, but this model has 4"),
        (lambda: tiny_model("llama", head_dim=8), "head width 16, but this model has 8"),
        (lambda: tiny_model("qwen3"), "weights '.{16}', but this model has"),
        (lambda: tiny_model("llama", seed=1), "weights '.{16}', but this model has"),
        (nudged, "weights '.{16}', but this model has"),
        (lambda: tiny_model("llama").bfloat16(), "dtype 'torch.float32', but this model has 'torch.bfloat16'"),
    ],
)
def test_another_model_is_refused(saved, other, message):
    with pytest.raises(HeadwiseError, match=f"cache of another model: {message}"):
        load_cache(saved, other(), SNAP)


def test_another_tokenizer_is_refused_where_both_are_known(model, tmp_path):
    words, others = (Model(model, word_tokenizer(list_of)) for list_of in (["a", "b"], ["a", "c"]))
    with compress(words, SNAP) as cache:
        cache.prefill(text(1, PROMPT))
        save_cache(cache, tmp_path / "cache.safetensors")
    load_cache(tmp_path / "cache.safetensors", words, SNAP)
    load_cache(tmp_path / "cache.safetensors", model, SNAP)  # token ids alone are used
    with pytest.raises(HeadwiseError, match=r"cache of another model: tokenizer '.{16}', but this model has"):
        load_cache(tmp_path / "cache.safetensors", others, SNAP)


@torch.no_grad()
def test_a_cache_goes_on_without_its_method_but_is_not_filled_anew(model, saved):
    with compress(model, SNAP) as cache:
        own = load_cache(saved, model)
        cache.prefill(text(1, PROMPT))
        new = text(5, 3)
        torch.testing.assert_close(forward(model, new, own).logits, forward(model, new, cache).logits)
        own.reset()
        with pytest.raises(HeadwiseError, match="not filled again; open a `compress` block with SnapKV"):
            own.prefill(text(1, PROMPT))


def test_another_method_is_refused(model, saved):
    with pytest.raises(HeadwiseError, match="was made by SnapKV; give that method instead of AdaKV"):
        load_cache(saved, model, AdaKV(budget=12, window=4, sinks=2))


def change(path, about=None, tensors=None):
    """The file with changes to its description and its tensors."""
    with safe_open(str(path), framework="pt") as file:
        found = json.loads(file.metadata()[KEY])
        own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (about or (lambda x: None))(found)
    (tensors or (lambda x: None))(own)
    path.write_bytes(safetensors.torch.save(own, {KEY: json.dumps(found)}))


@pytest.mark.parametrize(
    ("about", "tensors"),
    [
        (lambda a: a["layers"].pop(), None),
        (lambda a: a["layers"][1].pop("seen"), None),
        (lambda a: a["layers"][1]["groups"][0].update(used=99), None),
        (lambda a: a["layers"][1]["groups"].clear(), None),
        (lambda a: a["layers"].__setitem__(0, None), None),
        (lambda a: a.update(tokens=10**15), None),
        (lambda a: a.update(tokens=-1), None),
        (lambda a: a.update(tokens="40"), None),
        (lambda a: a.update(layers={"0": 1}), None),
        (lambda a: a.update({"rotary table": "x"}), None),
        (lambda a: a["layers"][1].update(seen=41), None),
        (lambda a: a["layers"][1]["groups"][0].update(used=True), None),
        (lambda a: a["layers"][1]["groups"][0].update(used=3), None),
        (lambda a: a["layers"][1]["groups"][0].update(holes="yes"), None),
        (lambda a: a["layers"][1]["groups"][0].update(window=[4, 10**12]), None),
        (lambda a: a["layers"][1]["groups"][0].update(window=[-4, 16]), None),
        (None, lambda t: t.pop("2.0.values")),
        (None, lambda t: t["2.0.keys"].view(-1)[7:8].fill_(float("nan"))),
        (None, lambda t: t["1.0.values"].view(-1)[7:8].fill_(float("inf"))),
        (None, lambda t: t["2.0.positions"].view(-1)[3:4].fill_(40)),
        (None, lambda t: t["2.0.positions"].view(-1)[3:4].fill_(-1)),
        (None, lambda t: t.update({"2.0.positions": t["2.0.positions"].float()})),
        (None, lambda t: t.update({"2.0.keys": t["2.0.keys"].half()})),
        (None, lambda t: t.update({"2.counts": torch.tensor([-5])})),
        (None, lambda t: t.update({"2.0.keys": t["2.0.keys"][:, :1].contiguous()})),
        (None, lambda t: t.update({"2.0.keys": t["2.0.keys"][..., :8].contiguous()})),
        (None, lambda t: t.update({"2.0.positions": t["2.0.positions"][..., :8].contiguous()})),
    ],
)
def test_a_changed_file_is_refused(model, saved, about, tensors):
    change(saved, about, tensors)
    with pytest.raises(HeadwiseError, match=r"is a broken cache file \((?!.*(Error\(|NoneType)).*\); read the prompt again"):
        load_cache(saved, model, SNAP)


def test_other_files_are_refused(model, saved, tmp_path):
    with pytest.raises(HeadwiseError, match="no such cache file"):
        load_cache(tmp_path / "none", model, SNAP)
    change(saved, lambda about: about.update(schema=99))
    with pytest.raises(HeadwiseError, match="no cache file that this headwise reads"):
        load_cache(saved, model, SNAP)
    saved.write_bytes(safetensors.torch.save({"weight": torch.zeros(2)}))
    with pytest.raises(HeadwiseError, match="no cache file that this headwise reads"):
        load_cache(saved, model, SNAP)
    for data in (b"", b"no safetensors at all", saved.read_bytes()[:-4]):
        saved.write_bytes(data)
        with pytest.raises(HeadwiseError, match="cannot be read as a cache file"):
            load_cache(saved, model, SNAP)


@pytest.mark.parametrize(
    "about",
    [
        lambda layer: layer.update(cumulative_length=3),
        lambda layer: layer.update(sliding_window=10**9),
        lambda layer: layer.update(dtype="torch.save"),
        lambda layer: layer.update(is_sliding=1.5),
        lambda layer: layer.update(update="x"),
    ],
)
def test_changed_layers_of_transformers_are_refused(about, tmp_path):
    hf, path = tiny_model("gemma2"), tmp_path / "cache.safetensors"
    with compress(hf, SNAP) as cache:
        cache.prefill(text(1, PROMPT))
        save_cache(cache, path)
        load_cache(path, hf, SNAP)
    change(path, lambda found: about(found["layers"][0]))
    with pytest.raises(HeadwiseError, match=r"is a broken cache file \((?!.*(Error\(|NoneType)).*\); read the prompt again"):
        load_cache(path, hf, SNAP)
