"""headwise's presses inside kvpress: the adapter with a small stand-in for kvpress. The real one: tests/integrations/check_kvpress.py."""

import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from headwise.caches.controls import Full, RandomTokens
from headwise.caches.kept_cache import compress
from headwise.caches.kvpress import MissingKvpressError, as_kvpress, rotated
from headwise.heads import HeadScores, HeadwiseError, MissingExtraError
from headwise.methods.adakv.press import AdaKV
from headwise.methods.compresskv.press import CompressKV
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.models.model import as_model
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache

LENGTH, WINDOW, SINKS = 40, 6, 3
COMMON = {"compression_ratio": 0.5, "window": WINDOW, "sinks": SINKS}
HEADS = HeadScores(np.random.default_rng(0).random((4, 8)), "random")
PRESSES = {
    "snapkv": SnapKV(**COMMON),
    "snapkv, 2 queries": SnapKV(**COMMON, queries=2, kernel=3),
    "snapkv, no sinks": SnapKV(compression_ratio=0.25, window=WINDOW, sinks=0),
    "streaming": StreamingLLM(**COMMON),
    "random": RandomTokens(**COMMON),
    "compresskv": CompressKV(HEADS, **COMMON),
    "compresskv, group": CompressKV(HEADS, **COMMON, sharing="group"),
}


@dataclass
class StandIn:
    """What the adapter needs of kvpress's ScorerPress: hooks that hand hidden states, keys and rotations to `score`; scores are kept."""

    compression_ratio: float = 0.0

    @contextmanager
    def __call__(self, model):
        self.post_init_from_model(model)
        self.found = []
        hooks = [layer.self_attn.register_forward_hook(self._hook, with_kwargs=True) for layer in model.model.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, module, inputs, kwargs, output):
        held = (kwargs.get("cache") or kwargs["past_key_values"]).layers[module.layer_idx]
        self.found.append(self.score(module, kwargs["hidden_states"], held.keys, held.values, None, kwargs))


def plain_queries(module, hidden):
    return module.q_proj(hidden).view(*hidden.shape[:2], -1, module.head_dim).transpose(1, 2)


@pytest.fixture
def kvpress(monkeypatch):
    package, utils = ModuleType("kvpress"), ModuleType("kvpress.utils")
    package.ScorerPress, package.utils, utils.get_prerope_query_states = StandIn, utils, plain_queries
    monkeypatch.setitem(sys.modules, "kvpress", package)
    monkeypatch.setitem(sys.modules, "kvpress.utils", utils)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(2, 96, (1, LENGTH), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def run(model, ids, made):
    with made(model):
        model(input_ids=ids, **with_cache(DynamicCache(config=model.config)), use_cache=True)
    return made.found


@torch.no_grad()
def held(model, ids, press):
    with compress(model, press) as cache:
        model(input_ids=ids, **with_cache(cache), use_cache=True)
        return [[own.tolist() for own in heads] for heads in cache.held_positions().values()]


@pytest.mark.parametrize("name", PRESSES)
def test_the_highest_scores_are_what_headwise_keeps(kvpress, model, ids, name):
    press = PRESSES[name]
    scores = run(model, ids, as_kvpress(press))
    count = int(LENGTH * (1 - press.compression_ratio))
    top = [[sorted(row) for row in layer[0].topk(count).indices.tolist()] for layer in scores]
    assert [layer.shape for layer in scores] == [(1, 2, LENGTH)] * 4
    assert top == held(model, ids, press)
    if name.startswith("snapkv") or name == "random":  # scores of each KV head: an exchange of heads must show
        assert sum(layer[0] != layer[1] for layer in top) >= 3


def test_presses_differ_in_what_they_keep(model, ids):
    kept = [held(model, ids, press) for press in PRESSES.values()]
    assert all(one != other for i, one in enumerate(kept) for other in kept[:i])


@pytest.mark.parametrize("name", ["snapkv", "random"])
def test_scores_are_those_of_the_press_and_protected_positions_stand_above_them(kvpress, model, ids, name):
    seen = []

    class Spy(type(PRESSES[name])):
        def scores(self, view):
            seen.append(super().scores(view))
            return seen[-1]

    held(model, ids, Spy(**COMMON))
    expected, found = seen.copy(), run(model, ids, as_kvpress(PRESSES[name]))
    free = slice(SINKS, LENGTH - WINDOW)
    for own, made in zip(expected, found, strict=True):
        torch.testing.assert_close(made[..., free], own[..., free], atol=1e-6, rtol=1e-5)
        fixed = torch.cat([made[..., :SINKS], made[..., -WINDOW:]], dim=-1)
        assert torch.isfinite(made).all()
        assert fixed.min() == fixed.max() > own[..., free].max() + 0.9


def test_it_is_a_press_of_kvpress_with_our_ratio(kvpress):
    press = SnapKV(compression_ratio=0.3)
    made = as_kvpress(press)
    assert isinstance(made, StandIn)
    assert (made.compression_ratio, repr(made)) == (0.3, f"HeadwisePress(compression_ratio=0.3, press={press!r})")


def test_a_given_model_is_used_and_checked(kvpress, model, ids):
    wrapped = as_model(model)
    assert as_kvpress(PRESSES["snapkv"], wrapped).model is wrapped
    foreign = CompressKV(HeadScores(np.random.default_rng(0).random((2, 4)), "random"), **COMMON)
    with pytest.raises(HeadwiseError, match=r"2 layers x 4 heads, but .* has 4 x 8"):
        as_kvpress(foreign, wrapped)
    with pytest.raises(HeadwiseError, match=r"2 layers x 4 heads, but .* has 4 x 8"):
        run(model, ids, as_kvpress(foreign))


def test_without_kvpress_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(
        MissingKvpressError, match=r"kvpress is not installed; it needs an environment of its own, see docs/kvpress.md"
    ):
        as_kvpress(SnapKV(compression_ratio=0.5))
    assert issubclass(MissingKvpressError, MissingExtraError)


@pytest.mark.parametrize(
    ("press", "message"),
    [
        (SnapKV(budget=32), "give the press a compression_ratio"),
        (AdaKV(compression_ratio=0.5), "Adaptive budgets do not fit"),
        (Full(), "only presses that score positions fit kvpress .*; got Full"),
    ],
)
def test_what_does_not_fit_is_refused(kvpress, press, message):
    with pytest.raises(HeadwiseError, match=message):
        as_kvpress(press)


def test_scores_that_cannot_be_right_are_refused(kvpress, model):
    keys = torch.zeros(1, 2, 5, 16)
    module = SimpleNamespace(config=SimpleNamespace(model_type="llama"), layer_idx=0)
    with pytest.raises(HeadwiseError, match="give as_kvpress the Model"):
        as_kvpress(SnapKV(**COMMON)).score(module, torch.zeros(1, 5, 64), keys, keys, None, {})
    made = as_kvpress(SnapKV(**COMMON), as_model(model))
    with pytest.raises(HeadwiseError, match="read in one pass; got 4 tokens and 5 keys"):
        made.score(module, torch.zeros(1, 4, 64), keys, keys, None, {})
    module.config.model_type = "cohere2"  # turns neighbouring pairs of a query
    with pytest.raises(HeadwiseError, match="cannot recompute the queries of 'cohere2' models; known: llama"):
        made.score(module, torch.zeros(1, 5, 64), keys, keys, None, {})


@pytest.mark.parametrize("turning", [8, 4])
def test_rotation_by_a_slow_loop(turning):
    query = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    half = turning // 2
    angles = torch.tensor([[t * 10000 ** (-i / half) for i in range(half)] for t in range(5)]).repeat(1, 2)[None]
    expected = query.clone()
    for t in range(5):
        for i in range(half):
            a, b, angle = query[:, :, t, i], query[:, :, t, i + half], t * 10000 ** (-i / half)
            expected[:, :, t, i] = a * math.cos(angle) - b * math.sin(angle)
            expected[:, :, t, i + half] = b * math.cos(angle) + a * math.sin(angle)
    torch.testing.assert_close(rotated(query, angles.cos(), angles.sin()), expected)
