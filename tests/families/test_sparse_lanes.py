"""Sparse decoding for 200 steps against a mask over all keys: on a CPU, with copies that come as late as they may, and on CUDA where there is one.

The context crosses the budget, rows are padded, turns of several tokens come in between, and tokens are taken back.
"""

import pytest
import torch

from headwise.attention import transfer
from headwise.attention.plan import attached
from headwise.caches import choosers
from headwise.caches.roomy import roomy_cache
from headwise.caches.sparse_cache import sparse_decode
from headwise.models.forward import forward
from headwise.models.model import as_model
from headwise.testing.tiny import TINY_FAMILIES, tiny_model
from tests.families.test_sparse_decode import CLOSE, HOLES, Fixed, FixedForAll, Masked
from tests.lanes import LateLanes

START, LONG_STEPS, SMALL, LONGEST = 12, 200, 20, 250
CUDA_CLOSE = {"atol": 5e-4, "rtol": 1e-3}  # sums in another order; one wrong row moves a logit by far more
FAMILIES = [name for name in TINY_FAMILIES if name not in HOLES]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def script(crops, steps):
    """What happens: (tokens given, tokens taken back before that)."""
    generator, length, found = torch.Generator().manual_seed(4), START, []
    for step in range(steps):
        turn = step % 41 == 40
        back = int(torch.randint(1, 6, (), generator=generator)) if crops and step % 29 == 28 else 0
        length += (3 if turn else 1) - back
        found.append((3 if turn else 1, back))
    assert length < LONGEST
    return found


@torch.no_grad()
def walked(model, cache, happens):
    """Logits [steps, 2, vocabulary] of the newest tokens, on the CPU; the first row begins with five tokens of padding."""
    generator, found = torch.Generator().manual_seed(8), []
    seen = torch.ones(2, START, dtype=torch.int64)
    seen[0, :5] = 0
    for count, back in [(START, 0), *happens]:
        if back:
            cache.crop(-back)
        length = cache.get_seq_length() + count
        mask = torch.cat([seen, torch.ones(2, length - START, dtype=torch.int64)], dim=1)
        ids = 2 + torch.randint(0, 94, (2, count), generator=generator)
        found.append(forward(model, ids.to(model.device), cache, attention_mask=mask.to(model.device)).logits[:, -1].cpu())
    return torch.stack(found[1:])


def script_for(model, steps=LONG_STEPS):
    own = as_model(model)
    return script(not own.is_hybrid and len(own.heads.full_layers) == own.heads.shape[0], steps)


def reference(model, shared, happens):
    """With a mask, on the CPU."""
    with attached(model) as plan, plan.running(Masked(model, SMALL, shared)):
        return walked(model, roomy_cache(model.config), happens)


def sparse(model, shared, placement, happens):
    chooser = FixedForAll() if shared else Fixed()
    with sparse_decode(model, chooser, budget=SMALL, sinks=2, recent=3, placement=placement) as cache:
        return walked(model, cache, happens), cache.report()


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per layer"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_next"])
def test_200_steps_equal_attention_with_a_mask(monkeypatch, family, shared):
    """Late copies too, which move as much as copies at once and give the same numbers up to the order of sums."""
    model = tiny_model(family)
    happens = script_for(model)
    slow = reference(model, shared, happens)
    reports = []
    for placement in ("device", "slots", "host"):
        found, report = sparse(model, shared, placement, happens)
        torch.testing.assert_close(found, slow, **CLOSE)
        reports.append(report)
    assert reports[1] == reports[2]
    assert reports[1]["moved_share"] < 1
    monkeypatch.setattr(transfer, "lanes_between", lambda *_: LateLanes())
    found, report = sparse(model, shared, "host", happens)
    torch.testing.assert_close(found, slow, **CLOSE)
    assert report == reports[2]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per layer"])
def test_a_layer_waits_for_its_own_rows_only(monkeypatch, shared):
    model = tiny_model("llama")
    happens = script_for(model, 40)
    slow = reference(model, shared, happens)
    behind = []

    class Watched(LateLanes):
        def hold(self, mark):
            behind.append(self.sent - mark)  # copies given, for later layers, that this layer does not wait for
            super().hold(mark)

    monkeypatch.setattr(transfer, "lanes_between", lambda *_: Watched())
    torch.testing.assert_close(sparse(model, shared, "host", happens)[0], slow, **CLOSE)
    assert max(behind) == (len(as_model(model).heads.full_layers) - 2 if shared else 0)
    monkeypatch.setattr(transfer, "lanes_between", lambda *_: Watched("hold"))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(sparse(model, shared, "host", happens)[0], slow, **CLOSE)


@pytest.mark.parametrize(
    "make", [lambda: choosers.RefreshEvery(3), choosers.Random, lambda: choosers.Pages(4), lambda: choosers.AnchorLayers(2)]
)
@pytest.mark.slow
def test_choosers_read_the_same_over_late_copies(monkeypatch, make):
    """Steps and layers that read everything come in between."""
    model = tiny_model("llama")
    happens, found = script_for(model, 60), []
    for lanes in (lambda: None, LateLanes):
        monkeypatch.setattr(transfer, "lanes_between", lambda *_, lanes=lanes: lanes())
        with sparse_decode(model, make(), budget=SMALL, sinks=2, recent=3, placement="host", check=False) as cache:
            found.append((walked(model, cache, happens), cache.report()))
    torch.testing.assert_close(found[0][0], found[1][0], **CLOSE)
    assert found[0][1] == found[1][1]


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per layer"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_equals_the_mask_on_a_cpu(family, shared):
    model = tiny_model(family)
    happens = script_for(model)
    slow = reference(model, shared, happens)
    counted = sparse(model, shared, "host", happens)[1]
    model = model.to("cuda")
    for placement in ("device", "slots", "host"):
        found, report = sparse(model, shared, placement, happens)
        torch.testing.assert_close(found, slow, **CUDA_CLOSE)
        assert placement == "device" or report == counted


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(
    "make",
    [
        choosers.Streaming,
        choosers.Random,
        choosers.Oracle,
        choosers.PreviousQuery,
        choosers.Pages,
        choosers.AnchorLayers,
        choosers.RefreshEvery,
    ],
)
def test_choosers_run_on_cuda_with_every_placement(make):
    model = tiny_model("llama").to("cuda")
    for placement in ("device", "slots", "host"):
        with sparse_decode(model, make(), budget=SMALL, sinks=2, recent=3, placement=placement, check=False) as cache:
            assert walked(model, cache, script_for(model, 40)).isfinite().all()
        assert cache.report()["sparse_steps"] > 0


@pytest.mark.gpu
@needs_cuda
def test_the_host_takes_memory_off_the_device():
    length, budget = 65_536, 256
    model = tiny_model("llama", max_position_embeddings=2 * length).to("cuda")
    grid, peaks = as_model(model).heads, {}
    for placement in ("device", "host"):
        with sparse_decode(model, FixedForAll(), budget=budget, placement=placement, check=False) as cache, torch.no_grad():
            for layer in grid.full_layers:
                cache.update(*torch.randn(2, 2, grid.kv_heads, length, grid.head_dim, device="cuda"), layer)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            for _ in range(3):
                forward(model, torch.full((2, 1), 7, device="cuda"), cache)
            torch.cuda.synchronize()
            peaks[placement] = torch.cuda.max_memory_allocated()
        del cache
    held = len(grid.full_layers) * 2 * grid.kv_heads * length * 2 * grid.head_dim * 4
    assert peaks["device"] - peaks["host"] > held // 2
