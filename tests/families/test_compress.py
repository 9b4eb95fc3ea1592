"""For every family: attention over a compressed cache against the full cache with everything masked that a head does not hold."""

import copy

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from headwise.attention.function import headwise_mask
from headwise.attention.plan import attached
from headwise.caches.allocation import Adaptive, Pyramid, Uniform
from headwise.caches.groups import Window
from headwise.caches.kept_cache import compress
from headwise.caches.kept_layer import Keep
from headwise.heads import HeadwiseError
from headwise.maths.attend import attend
from headwise.methods.snapkv.press import SnapKV
from headwise.models.model import as_model
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.helpers import with_cache

PROMPT, REST = 40, 9
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


NOTHING_TO_COMPRESS = ["mistral"]  # a sliding window in every layer


@pytest.fixture(scope="module", params=[family for family in TINY_FAMILIES if family not in NOTHING_TO_COMPRESS])
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def ids():
    return torch.randint(2, 96, (2, PROMPT + REST), generator=torch.Generator().manual_seed(1))


class Streams:
    """Even KV heads keep everything, odd ones a window; layers of one KV head alternate."""

    def __init__(self, prefill, window=Window(3, 6)):
        self.prefill, self._window = prefill, window

    def check(self, layout):
        self._heads = layout.heads.kv_heads

    def streams(self, layer, layout):
        if self._heads == 1:
            return [Keep(None, None, self._window if layer % 2 else None)]
        return [Keep(tuple(range(0, self._heads, 2))), Keep(tuple(range(1, self._heads, 2)), None, self._window)]

    def kept(self, view):
        return self.streams(view.layer, view.model)


def passes(model, ids, cache):
    """Logits of the prompt, a block of new tokens, and single tokens."""
    found = []
    for start, stop in ((0, PROMPT), (PROMPT, PROMPT + 5), *((i, i + 1) for i in range(PROMPT + 5, PROMPT + REST))):
        found.append(model(input_ids=ids[:, start:stop], **with_cache(cache), use_cache=True).logits)
    return torch.cat(found, dim=1)


@torch.no_grad()
def masked(hf, ids, visible):
    """The same passes over a full cache. visible(layer, group, asking, seen) -> bool [T, S], on top of the model's own mask."""
    twin = copy.deepcopy(hf)
    model = as_model(twin)
    layers = {id(module): layer for layer, module in model.modules.items()}

    def attention(module, query, key, value, mask, scaling=None, softcap=None, s_aux=None, **_):
        layer, heads = layers[id(module)], query.shape[1]
        asking = torch.arange(key.shape[2])[-query.shape[2] :, None] if model.heads.windows[layer] is None else None
        if asking is not None:
            seen = torch.arange(key.shape[2])[None]
            own = torch.stack([visible(layer, h // (heads // key.shape[1]), asking, seen) for h in range(heads)])[None]
            mask = own & (seen <= asking) if mask is None else own & mask
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attend(query, key, value, scaling=scaling, mask=mask, softcap=softcap, sinks=s_aux), None

    AttentionInterface.register("masked_reference", attention)
    AttentionMaskInterface.register("masked_reference", headwise_mask)
    twin.set_attn_implementation("masked_reference")
    return passes(twin, ids, DynamicCache(config=hf.config))


@torch.no_grad()
@pytest.mark.parametrize("allocation", [Uniform(), Pyramid(3), Adaptive()])
def test_selected_tokens_are_what_is_attended_to(model, ids, allocation):
    ids = ids[:1]
    with compress(model, SnapKV(budget=12, window=4, sinks=2, allocation=allocation)) as cache:
        got = passes(model, ids, cache)
        held = {layer: [set(own.tolist()) for own in rows] for layer, rows in cache.held_positions().items()}
        assert cache.get_seq_length() == PROMPT + REST

    def visible(layer, group, asking, seen):
        kept = torch.tensor([[i >= PROMPT or i in held[layer][group] for i in range(seen.shape[1])]])
        return kept | (asking < PROMPT)

    assert all(len(own) < PROMPT + REST for rows in held.values() for own in rows)
    torch.testing.assert_close(got, masked(model, ids, visible), **TOLERANCE)


@torch.no_grad()
def test_a_budget_above_the_prompt_changes_nothing(model, ids):
    with attached(model):
        expected = passes(model, ids, DynamicCache(config=model.config))
    with compress(model, SnapKV(budget=100)) as cache:
        torch.testing.assert_close(passes(model, ids, cache), expected, **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("prefill", ["dense", "chunked", "windowed"])
def test_streaming_heads_see_their_window(model, ids, prefill):
    window = Window(3, 6)
    with compress(model, Streams(prefill, window)) as cache:
        got = passes(model, ids, cache)
        kv_heads = cache.model.heads.kv_heads

    def visible(layer, group, asking, seen):
        streaming = layer % 2 if kv_heads == 1 else group % 2
        if not streaming:
            return torch.ones(asking.shape[0], seen.shape[1], dtype=torch.bool)
        near = (seen < window.sinks) | (asking - seen < window.recent)
        if prefill == "dense":
            near |= asking < PROMPT
        if prefill != "windowed" and len(asking) > 1:  # a block sees all that was held when it came
            start = asking[0]
            held = (seen < window.sinks) | (seen >= start - window.recent)
            near |= held
        return near

    torch.testing.assert_close(got, masked(model, ids, visible), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize(
    "compressor", [SnapKV(budget=10, window=4, sinks=2), Streams("dense"), Streams("chunked"), Streams("windowed")]
)
def test_rows_with_padding_are_like_rows_alone(model, ids, compressor):
    if as_model(model).is_hybrid or len(as_model(model).heads.full_layers) < len(as_model(model).modules):
        pytest.skip("padding in skipped layers is transformers' own matter")
    pads = 7
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :pads] = 0
    padded = ids[:, :PROMPT].clone()
    padded[0, pads:] = ids[0, : PROMPT - pads]

    def ends(prompt, rest, attention_mask=None):
        with compress(model, compressor) as cache:
            found = [cache.prefill(prompt, attention_mask)]
            for i in range(rest.shape[1]):
                places = None
                if attention_mask is not None:
                    attention_mask = torch.cat([attention_mask, torch.ones_like(rest[:, :1])], dim=1)
                    places = attention_mask.sum(dim=1, keepdim=True) - 1
                out = model(
                    input_ids=rest[:, i : i + 1], attention_mask=attention_mask, position_ids=places, **with_cache(cache
                ))
                found.append(out.logits[:, -1])
        return torch.stack(found, dim=1)

    rest = ids[:, PROMPT:]
    together = ends(padded, rest, mask)
    torch.testing.assert_close(together[1:], ends(padded[1:], rest[1:]), **TOLERANCE)
    torch.testing.assert_close(together[:1], ends(padded[:1, pads:], rest[:1]), **TOLERANCE)


@pytest.mark.parametrize("family", NOTHING_TO_COMPRESS)
def test_models_without_full_attention_are_refused(family):
    with pytest.raises(HeadwiseError, match="no layer with full attention"), compress(tiny_model(family), SnapKV(budget=20)):
        pass
