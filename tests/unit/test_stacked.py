"""Compressed caches as rows of one batch: each row goes on as its own cache would alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headwise.caches.controls import Full, RandomTokens
from headwise.caches.groups import Window
from headwise.caches.kept_cache import KeptCache, compress
from headwise.caches.kept_layer import Keep
from headwise.caches.stacked import can_be_stacked, stacked
from headwise.evaluation import reading
from headwise.evaluation.compression import Candidate, measure_compression
from headwise.evaluation.contexts import Context, Question
from headwise.heads import HeadScores, HeadwiseError
from headwise.methods.adakv.press import AdaKV
from headwise.methods.headkv.press import HeadKV
from headwise.methods.pyramidkv.press import PyramidKV
from headwise.methods.snapkv.press import SnapKV
from headwise.methods.streamingllm.press import StreamingLLM
from headwise.models.forward import forward
from headwise.models.model import Model
from headwise.prompts.prompt import Span
from headwise.testing.tiny import tiny_model

TOKENS = 60


class Windows:
    """A dense prefill whose second KV head then keeps a window."""

    prefill = "dense"

    def check(self, model):
        pass

    def streams(self, layer, model):
        return None

    def kept(self, view):
        return [Keep((0,)), Keep((1,), None, Window(3, 20))]


def presses(shape):
    scores = HeadScores(np.random.default_rng(1).random(shape), "semantic", 1)
    each = [Full(), StreamingLLM(budget=15), RandomTokens(budget=20)]
    return [*each, SnapKV(budget=16), AdaKV(budget=20), PyramidKV(budget=24), HeadKV(heads=scores, budget=20), SnapKV(budget=30)]


def numbers(count, seed):
    return tuple(torch.randint(2, 96, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_row_is_what_its_cache_is_alone(family):
    """Logits of a block of new tokens and of single ones behind it; caches that hold different numbers per KV head and layer."""
    hf = tiny_model(family)
    caches = []
    with compress(hf, Full()):
        for method in presses(Model(hf, None).heads.shape):
            caches.append(KeptCache(hf, method))
            caches[-1].prefill(torch.tensor([numbers(TOKENS, 3)]))
        before = [(cache.nbytes, cache.get_seq_length()) for cache in caches]
        rows, alone = stacked(caches, 8), [cache.fork() for cache in caches]
        assert rows.get_seq_length() == TOKENS
        for row, cache in enumerate(caches):
            for own, held in zip(rows.held_positions(row).values(), cache.held_positions().values(), strict=True):
                assert all(torch.equal(a, b) for a, b in zip(own, held, strict=True))
        for new in ([5, 9, 17], [40], [41]):
            together = forward(hf, torch.tensor([new] * len(caches)), rows).logits
            for row, cache in enumerate(alone):
                torch.testing.assert_close(together[row], forward(hf, torch.tensor([new]), cache).logits[0], atol=2e-5, rtol=1e-4)
        assert [(cache.nbytes, cache.get_seq_length()) for cache in caches] == before


@torch.no_grad()
def test_what_does_not_go_together_is_refused():
    hf, other = tiny_model("llama"), tiny_model("gemma2")
    with compress(hf, Full()), compress(other, Full()):
        made = []
        for model, method, count in ((hf, Full(), 30), (hf, Full(), 31), (hf, Windows(), 30), (other, Full(), 30)):
            made.append(KeptCache(model, method))
            made[-1].prefill(torch.tensor([numbers(count, 1)]))
        assert [can_be_stacked(cache) for cache in (*made, KeptCache(hf, Full()))] == [True, True, False, False, False]
        for wrong in ([], made[:2], [made[0], made[2]], [made[0], made[3]]):
            with pytest.raises(HeadwiseError, match="equally long texts"):
                stacked(wrong, 1)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.slow
def test_answers_of_batches_are_those_of_one_method_at_a_time(family, monkeypatch):
    """Whatever the order of the methods; with windows among them, and where layers cannot be compressed."""
    hf = tiny_model(family)
    model = Model(hf, SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids))))
    rests = (numbers(5, 7), numbers(9, 8))
    questions = tuple(Question(rest, 6, lambda said: float(len(said) % 2), Span(20, 24)) for rest in rests)
    contexts = [Context("x", None, numbers(TOKENS, seed), questions, frozenset({3})) for seed in (3, 4)]
    methods = [*presses(model.heads.shape), Windows()]
    candidates = [Candidate(f"{i}", getattr(method, "budget", None), method) for i, method in enumerate(methods)]
    sizes, started = [], reading.stacked
    monkeypatch.setattr(reading, "stacked", lambda caches, spare: sizes.append(len(caches)) or started(caches, spare))
    together = measure_compression(model, candidates, contexts, min_full=0.0)
    assert (max(sizes) if sizes else 0) == (len(methods) - 1 if family == "llama" else 0)
    monkeypatch.setattr(reading, "ROWS", 1)
    assert measure_compression(model, candidates, contexts, min_full=0.0) == together


@torch.no_grad()
def test_a_batch_holds_no_more_than_a_full_cache(monkeypatch):
    hf = tiny_model("llama")
    monkeypatch.setattr(reading, "ROOM", 0)
    with compress(hf, Full()):
        read = reading.Reading(Model(hf, None), numbers(TOKENS, 3))
        methods = [*enumerate([SnapKV(budget=20)] * 5 + [Full()])]
        assert [[one.number for one in batch] for batch in read.batches(methods)] == [[0, 1], [2, 3], [4], [5]]
