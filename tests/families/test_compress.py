"""For every family: attention over a compressed cache against the full cache with everything masked that a head does not hold."""

import copy

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from headwise.attention import ablate, observe, steer
from headwise.attention.plan import attached, headwise_mask
from headwise.caches.allocation import Adaptive, Pyramid, Uniform
from headwise.caches.groups import Window
from headwise.caches.kept_cache import compress
from headwise.caches.kept_layer import Keep
from headwise.heads import HeadSet, HeadwiseError
from headwise.maths.attend import attend
from headwise.maths.rows import RowStats
from headwise.methods.snapkv.press import SnapKV
from headwise.models.model import as_model
from headwise.models.weights import silence_in_weights
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.helpers import with_cache
from tests.reference.held import slow_statistics

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


PIECES = ((0, PROMPT), (PROMPT, PROMPT + 5), *((i, i + 1) for i in range(PROMPT + 5, PROMPT + REST)))


def passes(model, ids, cache, after=lambda: None):
    """Logits of the prompt, a block of new tokens, and single tokens. after() is called behind each pass."""
    found = []
    for start, stop in PIECES:
        found.append(model(input_ids=ids[:, start:stop], **with_cache(cache), use_cache=True).logits)
        after()
    return torch.cat(found, dim=1)


@torch.no_grad()
def masked(hf, ids, visible, watch=lambda **_: None):
    """The same passes over a full cache. visible(layer, group, asking, seen) -> bool [T, S], on top of the model's own mask.

    watch(layer=, query=, ...) sees every call.
    """
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
        watch(layer=layer, query=query, key=key, mask=mask, scaling=scaling, softcap=softcap, sinks=s_aux)
        return attend(query, key, value, scaling=scaling, mask=mask, softcap=softcap, sinks=s_aux), None

    AttentionInterface.register("masked_reference", attention)
    AttentionMaskInterface.register("masked_reference", headwise_mask)
    twin.set_attn_implementation("masked_reference")
    return passes(twin, ids, DynamicCache(config=hf.config))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("allocation", [Uniform(), Pyramid(3), Adaptive()])
def test_selected_tokens_are_what_is_attended_to(model, ids, allocation):
    ids = ids[:1]
    with compress(model, SnapKV(budget=12, window=4, sinks=2, allocation=allocation)) as cache:
        got = passes(model, ids, cache)
        held = {layer: [set(own.tolist()) for own in rows] for layer, rows in cache.held_positions().items()}
        assert cache.get_seq_length() == PROMPT + REST

    visible = of_held(held)
    assert all(len(own) < PROMPT + REST for rows in held.values() for own in rows)
    torch.testing.assert_close(got, masked(model, ids, visible), **TOLERANCE)


@torch.no_grad()
def test_a_budget_above_the_prompt_changes_nothing(model, ids):
    with attached(model):
        expected = passes(model, ids, DynamicCache(config=model.config))
    with compress(model, SnapKV(budget=100)) as cache:
        torch.testing.assert_close(passes(model, ids, cache), expected, **TOLERANCE)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("prefill", ["dense", "chunked", "windowed"])
def test_streaming_heads_see_their_window(model, ids, prefill):
    window = Window(3, 6)
    with compress(model, Streams(prefill, window)) as cache:
        got = passes(model, ids, cache)
        kv_heads = cache.model.heads.kv_heads

    torch.testing.assert_close(got, masked(model, ids, of_streams(prefill, window, kv_heads)), **TOLERANCE)


def of_held(held):
    """Rows of the prompt see everything, later ones what `held` says: layer -> per KV head a set of positions."""

    def visible(layer, group, asking, seen):
        kept = torch.tensor([[i >= PROMPT or i in held[layer][group] for i in range(seen.shape[1])]])
        return kept | (asking < PROMPT)

    return visible


def of_streams(prefill, window, kv_heads):
    """What the heads of `Streams` see."""

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

    return visible


SPANS = ((0, 5), (30, 44), (3, 60))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "method", [SnapKV(budget=12, window=4, sinks=2, allocation=Adaptive()), *map(Streams, ("dense", "chunked", "windowed"))]
)
def test_what_is_seen_over_a_compressed_cache_is_that_of_the_slow_reference(model, ids, method):
    """Strongest key, log-sum-exp and mass of the newest rows of every layer and pass, by position in the text."""
    seen, expected, rows = [], [], 3
    with compress(model, method) as cache, observe(model, rows=rows, spans=SPANS) as found:
        passes(model, ids, cache, lambda: seen.append(dict(found.by_layer)))
        held = {layer: [set(own.tolist()) for own in heads] for layer, heads in cache.held_positions().items()}
        kv_heads = cache.model.heads.kv_heads
    if isinstance(method, SnapKV):
        ids, seen = ids[:1], [{i: RowStats(*(x[:1] for x in vars(own).values())) for i, own in one.items()} for one in seen]
    visible = of_held(held) if isinstance(method, SnapKV) else of_streams(method.prefill, Window(3, 6), kv_heads)

    def watch(layer, query, key, mask, scaling, softcap, sinks):
        stop = PIECES[len(expected) // len(seen[0])][1]
        count = min(rows, query.shape[2])
        if mask is None:
            mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril(key.shape[2] - query.shape[2])[None, None]
        first = stop - key.shape[2]
        expected.append(slow_statistics(query[:, :, -count:], key, mask[:, :, -count:], first, SPANS, scaling, softcap, sinks))

    masked(model, ids, visible, watch)
    layers = list(seen[0])
    for i, (argmax, lse, mass, ahead) in enumerate(expected):
        own = seen[i // len(layers)][layers[i % len(layers)]]
        torch.testing.assert_close(own.lse, lse, **TOLERANCE)
        torch.testing.assert_close(own.mass, mass, **TOLERANCE)
        clear = ahead > 1e-5  # without position encoding (SmolLM3) two keys can tie
        assert torch.equal(own.argmax[clear], argmax[clear])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("mode", ["zero", "uniform"])
@pytest.mark.parametrize("method", [SnapKV(budget=12, window=4, sinks=2, allocation=Adaptive()), Streams("dense")])
def test_ablating_over_a_compressed_cache_is_editing_the_weights(model, ids, method, mode):
    heads = as_model(model).heads
    chosen = HeadSet.of([(layer, head) for layer in as_model(model).modules for head in (1, 6)], heads.shape)
    twin = copy.deepcopy(model)
    silence_in_weights(twin, chosen, mode)
    with compress(model, method) as cache, ablate(model, chosen, mode=mode):
        got = passes(model, ids, cache)
    with compress(twin, method) as cache:
        torch.testing.assert_close(got, passes(twin, ids, cache), **TOLERANCE)


@torch.no_grad()
def test_steering_over_a_cache_that_keeps_everything_is_steering(model, ids):
    with steer(model, None, [(3, 9), (20, 31)], bias=2.0):
        with attached(model):
            expected = passes(model, ids, DynamicCache(config=model.config))
        with compress(model, SnapKV(budget=100)) as cache:
            torch.testing.assert_close(passes(model, ids, cache), expected, **TOLERANCE)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("method", [SnapKV(budget=12, window=4, sinks=2, allocation=Adaptive()), Streams("dense")])
def test_steering_moves_the_mass_of_what_is_held(model, ids, method):
    """A bias of b multiplies the odds of the positions of a span that a head still holds by exp(b)."""
    layer, later = as_model(model).heads.full_layers[0], ids[:, PROMPT : PROMPT + 1]
    outputs = {}

    class Outputs:
        def look(self, call):
            outputs[call.layer] = call.output

    def output(bias):
        with (
            attached(model) as plan,
            compress(model, method) as cache,
            steer(model, None, [(0, 4)], bias=bias),
            plan.running(Outputs()),
        ):
            cache.prefill(ids[:, :PROMPT])
            with observe(model, spans=[(0, 4)]) as seen:
                model(later, **with_cache(cache))
            return outputs[layer], seen.by_layer[layer].mass[..., 0]

    if layer != min(as_model(model).modules):
        pytest.skip("lower layers are steered, too")
    with steer(model, None, [(0, 4)], bias=0.0):
        plain, mass = output(0.0)
    low, high = output(-60.0)[0], output(60.0)[0]  # without the span, and nothing else
    mixed = low * (1 - mass).transpose(1, 2)[..., None] + high * mass.transpose(1, 2)[..., None]
    assert ((mass > 0) & (mass < 1)).any()
    if not has_sinks(model):
        torch.testing.assert_close(mixed, plain, **TOLERANCE)


def has_sinks(model):
    return model.config.model_type == "gpt_oss"


@torch.no_grad()
def test_positions_of_padded_rows_are_refused_by_name(model, ids):
    mask = torch.ones(2, PROMPT, dtype=torch.int64)
    mask[0, :7] = 0
    with compress(model, SnapKV(budget=12, window=4, sinks=2)) as cache:
        cache.prefill(ids[:, :PROMPT], mask)
        with observe(model), pytest.raises(HeadwiseError, match="batches with padding cannot be observed or steered there"):
            model(ids[:, PROMPT : PROMPT + 1], **with_cache(cache))


@pytest.mark.slow
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
                out = model(input_ids=rest[:, i : i + 1], attention_mask=attention_mask, position_ids=places, **with_cache(cache))
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
