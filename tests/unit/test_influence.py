"""Document scores against slow loops, the contract of a `DocumentScorer`, and the mistakes that a reproduction made."""

import json
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from headwise.attention import ablate
from headwise.attention.branches import LossHead, branches
from headwise.attention.means import head_means
from headwise.attention.plan import attached
from headwise.corpus.documents import Encoded, Window, batches_of, windows_of
from headwise.heads import HeadSet, HeadwiseError
from headwise.maths.losses import token_losses
from headwise.methods.influence.scorer import AttentionInfluence, influence
from headwise.models.export import export_ablated
from headwise.models.fingerprint import weights_digest
from headwise.models.load import load
from headwise.models.model import Model
from headwise.models.names import bundled_model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.haystack import bundled_texts
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from headwise_lab.microworld.registry import make_example
from tests.reference.influence import (
    influence_of,
    official_bug_losses,
    plain_losses,
    reference_model,
    window_losses,
)

SHAPE = (4, 8)
HEADS = HeadSet.of([(2, 5), (3, 1)], SHAPE)
CLOSE = {"rel": 1e-5, "abs": 1e-5}


def without_bos():
    tokenizer = character_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


@pytest.fixture(scope="module")
def model():
    model = tiny_model("llama")
    return Model(model, without_bos())


def texts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [Encoded(rng.integers(3, 96, n).astype(np.int32)) for n in lengths]


# --- chunked loss ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    count=st.integers(1, 20), size=st.integers(2, 40), rows=st.integers(1, 25), columns=st.integers(1, 50),
    scale=st.sampled_from([1.0, 0.25]), softcap=st.sampled_from([None, 2.0]), bias=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_chunked_losses_equal_those_of_full_logits(count, size, rows, columns, scale, softcap, bias, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, shift = (torch.randn(n, generator=generator) * 3 for n in ((count, 8), (size, 8), (size,)))
    targets = torch.randint(0, size, (count,), generator=generator)
    logits = scale * (hidden.double() @ weight.double().T + (shift if bias else 0))
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    got = token_losses(hidden, targets, weight, shift if bias else None, scale=scale, softcap=softcap, rows=rows, columns=columns)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-5)


def test_bfloat16_states_give_float32_losses():
    hidden, weight = torch.randn(6, 8).bfloat16(), torch.randn(50, 8).bfloat16()
    targets = torch.arange(6)
    expected = torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    torch.testing.assert_close(token_losses(hidden, targets, weight, rows=4, columns=16), expected, atol=1e-5, rtol=1e-5)


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused():
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _, __, output: output * 1.5)
    with pytest.raises(HeadwiseError, match="LlamaForCausalLM changes its logits in a way that is not known here"):
        LossHead(model)


# --- windows and batches --------------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(lengths=st.lists(st.integers(0, 60), max_size=12), size=st.integers(2, 20), tokens=st.integers(1, 80))
def test_windows_cover_every_document_once_and_batches_every_window(lengths, size, tokens):
    windows = windows_of(lengths, size)
    for document, length in enumerate(lengths):
        own = [window for window in windows if window.document == document]
        covered = [i for window in own for i in range(window.start, window.stop)]
        lonely = [length - 1] if length % size == 1 else []  # a last window of one token has nothing to predict
        assert covered + lonely == list(range(length))
        assert all(window.start % size == 0 and window.scored >= 1 for window in own)
    batches = batches_of(windows, tokens)
    assert sorted(window for batch in batches for window in batch) == sorted(windows)
    assert all(len(batch) == 1 or len(batch) * max(w.scored for w in batch) <= tokens for batch in batches)
    assert batches_of(list(reversed(windows)), tokens) == batches
    longest = [batch[0].scored for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_no_more_windows_than_wanted():
    assert windows_of([25, 1, 7], 10, 2) == [Window(0, 0, 10), Window(0, 10, 20), Window(2, 0, 7)]
    with pytest.raises(HeadwiseError, match="windows need at least 2 tokens, of which the second is predicted; got 1"):
        windows_of([5], 1)


# --- scores -------------------------------------------------------------------------------------------------------------------------


def test_scores_equal_the_slow_loop(model):
    documents = texts_of(30, 2, 17, 30, 9, 64)
    twin = reference_model(model.hf, HEADS)
    rows = AttentionInfluence(model, HEADS, tokens_per_batch=70).score(documents)
    for document, row in zip(documents, rows, strict=True):
        ids = document.ids.tolist()
        score, base, changed = influence_of(plain_losses(model.hf, ids), plain_losses(twin, ids))
        assert row.loss_base == pytest.approx(base, **CLOSE)
        assert row.loss_ref == pytest.approx(changed, **CLOSE)
        assert row.score == pytest.approx(score, rel=1e-3, abs=1e-5)
        assert (row.n_tokens, row.n_scored, row.truncated) == (len(ids), len(ids) - 1, False)
    scores = [row.score for row in rows]
    assert max(map(abs, scores)) > 1e-3
    assert min(scores) < 0  # legitimate: heads may harm


def test_a_bos_stands_in_front_and_has_no_loss(model):
    tokenizer = character_tokenizer()
    with_bos = replace(model, tokenizer=tokenizer)
    scorer = AttentionInfluence(with_bos, HEADS, max_len=11)
    document = scorer.encode(["a text of more than ten characters"])[0]
    assert tokenizer.bos_token_id not in document.ids
    expected = []
    for start in range(0, len(document.ids), 10):
        part = document.ids[start : start + 10].tolist()
        expected += plain_losses(model.hf, [tokenizer.bos_token_id, *part])[1:]
    row = scorer.score([document])[0]
    assert row.n_scored == len(expected) == len(document.ids) - 4
    assert row.loss_base == pytest.approx(np.mean(expected), **CLOSE)


def test_long_documents_are_read_in_windows_side_by_side(model):
    document = texts_of(45)[0]
    ids, twin = document.ids.tolist(), reference_model(model.hf, HEADS)
    row = AttentionInfluence(model, HEADS, max_len=11).score([document])[0]
    score, base, changed = influence_of(window_losses(model.hf, ids, 11), window_losses(twin, ids, 11))
    assert (row.loss_base, row.loss_ref) == (pytest.approx(base, **CLOSE), pytest.approx(changed, **CLOSE))
    assert row.score == pytest.approx(score, rel=1e-3)
    assert (row.n_tokens, row.n_scored, row.truncated) == (45, 40, False)  # windows of 11, 11, 11, 11 and 1
    cut = AttentionInfluence(model, HEADS, max_len=11, max_windows=2).score([document])[0]
    assert (cut.n_tokens, cut.n_scored, cut.truncated) == (45, 20, True)
    assert cut.loss_base == pytest.approx(np.mean(window_losses(model.hf, ids[:22], 11)), **CLOSE)
    whole = AttentionInfluence(model, HEADS, max_len=11, max_windows=2).score(texts_of(22))[0]
    assert not whole.truncated


def test_the_same_list_gives_the_same_bits(model):
    documents = texts_of(*np.random.default_rng(1).integers(2, 60, 20))
    scorer = AttentionInfluence(model, HEADS, tokens_per_batch=64)
    first = scorer.score(documents)
    scorer.score(texts_of(5, 40, seed=2))
    assert scorer.score(documents) == first
    twin = AttentionInfluence(model, HEADS, tokens_per_batch=64)
    assert twin.score(documents) == first


def test_batches_do_not_decide_scores(model):
    """Padding and neighbours change nothing: attention looks back only, so no mask is needed."""
    documents = texts_of(3, 50, 20, 49, 4, 33)
    alone = [AttentionInfluence(model, HEADS).score([document])[0] for document in documents]
    for tokens in (1, 60, 10_000):
        for row, expected in zip(AttentionInfluence(model, HEADS, tokens_per_batch=tokens).score(documents), alone, strict=True):
            assert row.loss_base == pytest.approx(expected.loss_base, **CLOSE)
            assert row.loss_ref == pytest.approx(expected.loss_ref, **CLOSE)


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_other_modes_equal_ablation(model, mode):
    document = texts_of(40)[0]
    means = head_means(model.hf, [torch.from_numpy(document.ids).long()[None]]) if mode == "mean" else None
    row = AttentionInfluence(model, HEADS, mode, means=means).score([document])[0]
    with ablate(model.hf, HEADS, mode=mode, means=means):
        expected = np.mean(plain_losses(model.hf, document.ids.tolist()))
    assert row.loss_ref == pytest.approx(expected, **CLOSE)
    assert row.loss_ref != pytest.approx(AttentionInfluence(model, HEADS).score([document])[0].loss_ref, abs=1e-4)


def test_rows_that_cannot_be_scored_stay_in_place(model):
    texts = ["a usable text of some length", "", "  \n", None, float("nan"), "half \ud800 a pair", 7, b"bytes", "x"]
    scorer = AttentionInfluence(model, HEADS, min_tokens=5)
    encoded = scorer.encode(texts)
    rows = scorer.score(encoded)
    assert [row.reason for row in rows] == [None, *["no text"] * 4, *["not valid text"] * 3, "too short"]
    assert [row.n_tokens for row in rows] == [28, *[0] * 7, 1]
    for row in rows[1:]:
        assert np.isnan([row.loss_base, row.loss_ref, row.score]).all()
        assert (row.n_scored, row.flagged) == (0, True)
    assert scorer.score(encoded[:1]) == rows[:1]
    assert scorer.score([]) == []
    assert [row.reason for row in scorer.score(encoded[1:])] == [row.reason for row in rows[1:]]


def test_short_documents_and_losses_at_the_floor_are_flagged(model):
    short, long = AttentionInfluence(model, HEADS).score(texts_of(64, 65))
    assert (short.n_scored, short.flagged, short.reason) == (63, True, "few tokens")
    assert (long.n_scored, long.flagged, long.reason) == (64, False, None)
    row = AttentionInfluence(model, HEADS, floor=100.0).score(texts_of(80))[0]
    assert (row.flagged, row.reason) == (True, "loss at the floor")
    assert row.score == pytest.approx((row.loss_ref - row.loss_base) / 100)


def test_a_loss_that_is_not_finite_is_a_reason_not_an_end():
    hf = tiny_model("llama")
    with torch.no_grad():
        hf.model.embed_tokens.weight[90] = torch.nan
    model = Model(hf, without_bos())
    good, bad = texts_of(20)[0], Encoded(np.array([5, 90, 7], dtype=np.int32))
    good.ids[good.ids == 90] = 4
    rows = AttentionInfluence(model, HEADS).score([good, bad])
    assert [row.reason for row in rows] == ["few tokens", "loss not finite"]
    assert math.isfinite(rows[0].score)
    assert math.isnan(rows[1].score)


def test_tokens_that_the_model_does_not_know_are_a_reason(model):
    tokenizer = without_bos()
    tokenizer.add_tokens(["@@new@@"])
    row = AttentionInfluence(replace(model, tokenizer=tokenizer), HEADS).encode(["one @@new@@ word"])[0]
    assert (row.reason, len(row.ids)) == ("token outside of the vocabulary", 0)


def test_texts_are_encoded_in_several_threads(model):
    scorer = AttentionInfluence(model, HEADS)
    texts = [f"text number {i} of many" for i in range(300)]
    expected = [document.ids.tolist() for document in scorer.encode(texts)]
    found = {}

    def work(name):
        found[name] = [document.ids.tolist() for document in scorer.encode(texts)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [expected] * 6


def test_losses_of_tokens_and_spans(model):
    document = texts_of(30)[0]
    ids, twin = document.ids.tolist(), reference_model(model.hf, HEADS)
    scorer = AttentionInfluence(model, HEADS, max_len=16, min_tokens=4)
    table = scorer.token_losses(document)
    expected = np.full((2, 30), np.nan)
    for row, hf in enumerate((model.hf, twin)):
        for start in (0, 16):
            expected[row, start + 1 : start + 16] = plain_losses(hf, ids[start : start + 16])
    np.testing.assert_allclose(table, expected, atol=1e-5)
    spans = scorer.span_scores(document, [(0, 10), (10, 30), (0, 30), (16, 17), (20, 22)])
    assert [span.n_scored for span in spans] == [9, 19, 28, 0, 2]
    assert [span.reason for span in spans] == [None, None, None, "too short", "few tokens"]
    assert spans[1].loss_ref == pytest.approx(np.nanmean(expected[1, 10:30]), **CLOSE)
    whole = scorer.score([document])[0]
    assert spans[2].score == pytest.approx(whole.score, rel=1e-5)
    for span in ((5, 5), (-1, 3), (20, 31)):
        with pytest.raises(HeadwiseError, match=r"does not lie in a document of 30 tokens"):
            scorer.span_scores(document, [span])


def test_the_description_holds_all_that_could_change_a_score(model):
    def told(heads=HEADS, hf=model, **options):
        return json.dumps(AttentionInfluence(hf, heads, **options).description, sort_keys=True)

    twin = tiny_model("llama")
    with torch.no_grad():
        twin.model.layers[3].mlp.up_proj.weight += 1e-3
    changed = replace(model, hf=twin)
    means = torch.zeros(4, 8, 16)
    others = [
        told(HeadSet.of([(2, 5)], SHAPE)), told(mode="zero"), told(mode="mean", means=means), told(mode="mean", means=means + 1),
        told(max_len=64), told(max_windows=3), told(tokens_per_batch=64), told(min_tokens=8), told(floor=0.1), told(hf=changed),
        told(hf=replace(model, tokenizer=character_tokenizer())),
    ]  # fmt: skip
    assert len({told(), *others}) == 1 + len(others)
    assert told(HeadSet.of([(3, 1), (2, 5)], SHAPE)) == told()  # the order of heads changes nothing
    assert weights_digest(twin) != weights_digest(model.hf) == weights_digest(tiny_model("llama"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_len": 257}, "max_len 257 is more than the model's 256 positions"),
        ({"max_len": 1}, "windows need at least 2 tokens"),
        ({"max_windows": 0}, "max_windows must be at least 1; got 0"),
        ({"tokens_per_batch": 0}, "tokens_per_batch must be at least 1; got 0"),
        ({"min_tokens": -1}, "min_tokens must be at least 0; got -1"),
        ({"floor": 0.0}, "the floor must be above 0 nats; got 0"),
        ({"floor": math.nan}, "the floor must be above 0 nats; got nan"),
        ({"mode": "magic"}, "unknown ablation mode 'magic'"),
        ({"mode": "mean"}, "mode 'mean' needs calibrated means"),
        ({"heads": HeadSet((), SHAPE)}, "no head to ablate; choose at least one"),
        ({"heads": HeadSet.of([(0, 1)], (2, 2))}, "belong to a model of 2 layers x 2 heads"),
    ],
)
def test_what_cannot_be_done_is_refused(model, options, message):
    with pytest.raises(HeadwiseError, match=message):
        AttentionInfluence(model, **{"heads": HEADS, **options})
    assert not any(module._forward_pre_hooks for module in model.hf.modules())


def test_the_model_is_bit_for_bit_as_before(model):
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = model.hf(ids).logits
    weights = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    AttentionInfluence(model, HEADS).score(texts_of(20, 30))
    with torch.no_grad():
        assert torch.equal(model.hf(ids).logits, before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.hf.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


# --- the card's claims, and mistakes of a reproduction (section 4) -----------------------------------------------------------------------


@settings(max_examples=200)
@given(st.lists(st.tuples(st.floats(0.05, 12), st.floats(0.01, 15)), min_size=2, max_size=30, unique=True))
def test_claim_6_ranking_by_the_text_and_by_the_figure_is_the_same(pairs):
    by_text = [influence(base, changed, 0.05) for base, changed in pairs]
    by_figure = [1 - base / changed for base, changed in pairs]
    for i in range(len(pairs)):
        for j in range(i):
            if abs(by_text[i] - by_text[j]) > 1e-9 * max(1, abs(by_text[i])):
                assert (by_text[i] > by_text[j]) == (by_figure[i] > by_figure[j])


def test_claim_8_one_pass_equals_two_passes_of_an_exported_checkpoint(model, tmp_path):
    export_ablated(model, HEADS, "uniform", tmp_path / "without")
    twin = load(str(tmp_path / "without"), "cpu").hf
    for document, row in zip(texts := texts_of(64, 30), AttentionInfluence(model, HEADS).score(texts), strict=True):
        assert row.loss_base == pytest.approx(np.mean(plain_losses(model.hf, document.ids.tolist())), abs=1e-5)
        assert row.loss_ref == pytest.approx(np.mean(plain_losses(twin, document.ids.tolist())), abs=1e-5)


def test_labels_are_shifted_once(model):
    """Mistake 3: labels that are shifted before a model shifts them score the token two ahead."""
    document = texts_of(60)[0]
    row = AttentionInfluence(model, HEADS).score([document])[0]
    ids = document.ids.tolist()
    assert row.loss_base == pytest.approx(np.mean(plain_losses(model.hf, ids)), **CLOSE)
    with torch.no_grad():
        assert row.loss_base != pytest.approx(np.mean(official_bug_losses(model.hf, ids)), abs=1e-3)


def test_shared_keys_and_values_are_left_alone(model):
    """Mistake 4: zeroing key and value rows silences every head of the group; here heads 4 to 7 share one KV head."""
    outputs = {}

    class Tap:
        def look(self, call):
            outputs[call.layer] = (call.output, call.values[0])

    ids = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(3))
    with branches(model.hf, HeadSet.of([(2, 5)], SHAPE)) as run, attached(model.hf) as plan, plan.running(Tap()):
        run(ids)
    output, values = outputs[2]  # [2 * 2, T, H, d], [2 * 2, KV heads, T, d]
    same = [torch.equal(output[:2, :, head], output[2:, :, head]) for head in range(8)]
    assert same == [True] * 5 + [False] + [True] * 2
    mean = values[2:, 1].cumsum(dim=1) / torch.arange(1, 13).view(1, -1, 1)
    torch.testing.assert_close(output[2:, :, 5], mean, atol=1e-6, rtol=1e-6)  # claim 5, exact part


def test_every_document_is_scored_once(model, monkeypatch):
    """Mistake 5: work that is shared out must not be done by all; here every token is predicted exactly once."""
    seen = []
    scorer = AttentionInfluence(model, HEADS, max_len=20, tokens_per_batch=50)
    head = scorer._head
    monkeypatch.setattr(scorer, "_head", lambda hidden, targets: (seen.append(len(targets)), head(hidden, targets))[1])
    rows = scorer.score(texts_of(50, 7, 20, 21))
    assert sum(seen) == 2 * sum(row.n_scored for row in rows) == 2 * (47 + 6 + 19 + 19)


def test_large_vocabularies_keep_their_ids():
    """Mistake 6: ids above 65,535 do not fit into two bytes."""
    hf = tiny_model("llama", vocab_size=70_000)
    model = Model(hf, without_bos())
    document = Encoded(np.array([5, 69_999, 66_000, 464], dtype=np.int32))  # 66,000 would read 464
    row = AttentionInfluence(model, HEADS).score([document])[0]
    assert row.loss_base == pytest.approx(np.mean(plain_losses(hf, document.ids.tolist())), **CLOSE)


@pytest.mark.slow
def test_claim_5_three_ways_to_leave_heads_out_rank_alike():
    """world-6m, its four best heads by proxy score; key-value tables, needle questions and novels."""
    model = load(str(bundled_model("world-6m")), "cpu")
    heads = HeadSet.of([(4, 4), (4, 5), (5, 3), (5, 2)], model.heads.shape)
    made = [make_example(task, "test", np.random.default_rng([7, i])).text for task in ("key_value", "needle") for i in range(12)]
    novel, other = bundled_texts()[:2]
    encode = PieceEncoder(model.tokenizer).encode
    means = head_means(model.hf, [torch.tensor([encode(other[i * 2000 : i * 2000 + 1200])]) for i in range(8)])
    scores = {}
    for mode in ("uniform", "zero", "mean"):
        scorer = AttentionInfluence(model, heads, mode, means=means if mode == "mean" else None)
        texts = scorer.encode([*made, *(novel[i * 1500 : i * 1500 + 900] for i in range(12))])
        scores[mode] = np.array([row.score for row in scorer.score(texts)])
    for a, b in (("uniform", "zero"), ("uniform", "mean"), ("zero", "mean")):
        assert spearmanr(scores[a], scores[b]).statistic > 0.8
    assert scores["zero"].mean() > 1.2 * scores["uniform"].mean()
