"""For every family: sparse decoding against full attention with a mask over the same positions, with slots, padding and several turns."""

import warnings

import pytest
import torch

from headwise.attention.call import Whole
from headwise.attention.plan import attached
from headwise.caches import choosers
from headwise.caches.roomy import roomy_cache
from headwise.caches.sparse_cache import sparse_decode
from headwise.heads import HeadSet, HeadwiseError
from headwise.methods.specontext.chooser import Distilled
from headwise.models.draft_head import INPUTS, DraftHead, shape_for
from headwise.models.forward import forward
from headwise.models.model import as_model
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.helpers import with_cache

LENGTH, STEPS, BUDGET = 24, 8, 9
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


HOLES = {"mistral": "no layer with full attention"}  # declared: sliding layers are left as they are


@pytest.fixture(scope="module", params=[name for name in TINY_FAMILIES if name not in HOLES])
def model(request):
    made = tiny_model(request.param)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 1
    return made


def texts(rows=2):
    return torch.stack([2 + torch.randint(0, 94, (LENGTH + STEPS,), generator=torch.Generator().manual_seed(seed)) for seed in range(rows)])


def padded():
    found = torch.ones(2, LENGTH + STEPS, dtype=torch.int64)
    found[0, :5] = 0
    return found


def fixed_scores(groups, length, layer):
    return torch.rand(2, groups, length, generator=torch.Generator().manual_seed(100 * length + layer))


class Fixed(choosers.FreeChooser):
    """Scores that a test can make again."""

    name, shared, checked = "fixed", False, False

    def scores(self, call, whole):
        return fixed_scores(whole.keys[-1].shape[1], whole.length, call.layer)


class FixedForAll(Fixed):
    """The same for all layers and KV heads."""

    name, shared = "fixed for all", True

    def scores(self, call, whole):
        return fixed_scores(1, whole.length, 0)


class Masked:
    """Step: the same choice as a mask over all keys, written as a slow loop."""

    def __init__(self, model, budget=BUDGET, shared=False):
        self.layers, self.budget, self.shared = as_model(model).heads.full_layers, budget, shared

    def choose_keys(self, call):
        whole = call.whole
        if call.query.shape[2] > 1 or call.layer not in self.layers or whole.length <= self.budget:
            return whole
        groups, each = whole.keys[-1].shape[1], call.query.shape[1] // whole.keys[-1].shape[1]
        scores = fixed_scores(1, whole.length, 0).expand(-1, groups, -1) if self.shared else fixed_scores(groups, whole.length, call.layer)
        seen = torch.ones(2, whole.length, dtype=torch.bool) if whole.visible is None else whole.visible[:, 0, -1].expand(2, -1)
        mask = torch.zeros(2, call.query.shape[1], 1, whole.length, dtype=torch.bool)
        for row in range(2):
            places = [i for i, is_seen in enumerate(seen[row].tolist()) if is_seen]
            kept = set(places[:2]) | set(places[-3:])
            for group in range(groups):
                own = scores[row, group].tolist()
                rest = sorted((i for i in places if i not in kept), key=lambda i: -own[i])
                mask[row, group * each : (group + 1) * each, 0, sorted(kept | set(rest[: self.budget - len(kept)]))] = True
        return Whole(whole.keys, whole.values, mask)


@torch.no_grad()
def decoded(model, ids, mask, cache):
    """Logits of every decoding step behind a prompt of LENGTH tokens."""
    found = []
    for stop in [LENGTH, *range(LENGTH + 1, ids.shape[1] + 1)]:
        new = ids[:, cache.get_seq_length() : stop]
        given = None if mask is None else mask[:, :stop]
        found.append(forward(model, new, cache, attention_mask=given).logits[:, -1])
    return torch.stack(found[1:])


@pytest.mark.parametrize("mask", [None, padded()], ids=["whole", "padded"])
@pytest.mark.parametrize("placement", ["device", "slots", "host"])
def test_a_choice_is_attention_with_a_mask(model, mask, placement):
    ids = texts()
    with attached(model) as plan, plan.running(Masked(model)):
        slow = decoded(model, ids, mask, roomy_cache(model.config))
    with sparse_decode(model, Fixed(), budget=BUDGET, sinks=2, recent=3, placement=placement) as cache:
        found = decoded(model, ids, mask, cache)
    torch.testing.assert_close(found, slow, **CLOSE)
    assert cache.report()["sparse_steps"] == STEPS
    assert 0 < cache.report()["read_share"] < 0.5


def test_a_budget_that_holds_everything_is_full_attention_bit_for_bit(model):
    ids = texts()
    with attached(model):
        full = decoded(model, ids, None, roomy_cache(model.config))
    with sparse_decode(model, choosers.Random(), budget=LENGTH + STEPS, sinks=2, recent=3) as cache:
        assert torch.equal(decoded(model, ids, None, cache), full)
    assert cache.report()["sparse_steps"] == 0


def every_chooser(model):
    own = as_model(model)
    heads = HeadSet.of([(own.heads.full_layers[0], 1), (own.heads.full_layers[-1], 3)], own.heads.shape)
    return [
        choosers.Streaming(), choosers.Random(), choosers.Oracle(), choosers.PreviousQuery(), choosers.Pages(4), choosers.AnchorLayers(2),
        choosers.RetrievalHeads(heads), choosers.RefreshEvery(3, heads), choosers.RefreshEvery(4),
        *(Distilled(DraftHead(shape_for(own, inputs, 16)).eval().requires_grad_(False)) for inputs in INPUTS),
    ]  # fmt: skip


@pytest.mark.slow
def test_generate_with_every_chooser(model):
    ids = texts()[:, :LENGTH]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    plain = model.generate(ids, max_new_tokens=STEPS, do_sample=False)
    for chooser in every_chooser(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # tiny random models attend to nothing in particular
            with sparse_decode(model, chooser, budget=BUDGET, sinks=2, recent=3, placement="slots") as cache:
                said = model.generate(ids, attention_mask=padded()[:, :LENGTH], **with_cache(cache), max_new_tokens=STEPS, do_sample=False)
        assert said.shape == plain.shape
        assert cache.get_seq_length() == LENGTH + STEPS - 1
        assert cache.report()["steps"] == STEPS - 1
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert torch.equal(model.generate(ids, max_new_tokens=STEPS, do_sample=False), plain)


@pytest.mark.slow
def test_every_chooser_survives_a_second_turn_and_tokens_taken_back(model):
    if as_model(model).is_hybrid:
        pytest.skip("recurrent states cannot be cut back")
    ids = texts()
    for chooser in every_chooser(model):
        with sparse_decode(model, chooser, budget=BUDGET, sinks=2, recent=3, check=False, placement="slots") as cache, torch.no_grad():
            decoded(model, ids[:, : LENGTH + 3], None, cache)
            if not cache.skipped:
                cache.crop(-6)
                decoded(model, ids[:, : LENGTH + 5], None, cache)
            forward(model, ids[:, -4:], cache)  # a turn of four tokens
            assert forward(model, ids[:, :1], cache).logits.isfinite().all()


def test_a_layer_that_reads_everything_changes_nothing(model):
    """Slots of layers that pass over a step are brought up to date later."""

    class Now(Fixed):
        shared = True

        def __init__(self, every):
            self.every, self.step = every, 0

        def begin(self, now):
            self.step += 1

        def reads_all(self, layer):
            return self.every and self.step % 3 == 0 and layer % 2 == 0

        def scores(self, call, whole):
            return fixed_scores(1, whole.length, 0)

    ids = texts()
    with sparse_decode(model, Now(True), budget=BUDGET, sinks=2, recent=3) as cache:
        gathered = decoded(model, ids, None, cache)
    with sparse_decode(model, Now(True), budget=BUDGET, sinks=2, recent=3, placement="slots") as cache:
        slots = decoded(model, ids, None, cache)
    torch.testing.assert_close(slots, gathered, **CLOSE)
    assert cache.report()["moved_share"] < 1


def test_beams_are_refused(model):
    ids = texts()[:, :LENGTH]
    with sparse_decode(model, choosers.Streaming(), budget=BUDGET, sinks=2, recent=3) as cache, pytest.raises(HeadwiseError, match="num_beams=1"):
        model.generate(ids, **with_cache(cache), max_new_tokens=3, num_beams=2)


@pytest.mark.parametrize("family", HOLES)
def test_a_model_without_full_attention_is_refused(family):
    hf = tiny_model(family)
    with pytest.raises(HeadwiseError, match=HOLES[family]), sparse_decode(hf, choosers.Streaming(), budget=BUDGET, sinks=2, recent=3):
        pass
