"""The engine against plain transformers: shared prefixes, leaves, forks, drafts, traced answers, run directories."""

from contextlib import contextmanager, nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from headwise.attention import observe
from headwise.attention.plan import attached
from headwise.attention.tail import last_rows
from headwise.caches.shared import fork, full_cache, shared_past
from headwise.heads import HeadwiseError
from headwise.maths.copy import copy_hits
from headwise.models.model import as_model
from headwise.runtime.answer import answer_variants, decode_one, decode_rows, guess, traced_answer, verify_draft
from headwise.runtime.rundir import RunDirectory
from headwise.runtime.runner import Leaf, branch_points, leaves, prefill, sharing_order
from headwise.testing.planted import planted_copier, planted_task
from headwise.testing.tiny import tiny_model
from tests.helpers import with_cache
from tests.reference.official_copy import official_copy_run

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
# transformers' own float32 recurrence is off by 5e-5 from float64, and differs by as much when a text is run in two pieces.
HYBRID = {"atol": 1e-4, "rtol": 1e-4}
FAMILIES = ("llama", "gemma3_text", "qwen3_next", "gpt_oss", "gpt2")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny_model(request.param)


def tolerance(model):
    return HYBRID if as_model(model).is_hybrid else TOLERANCE


def tokens(count, seed=0):
    return torch.randint(2, 96, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def plain_logits(model, ids):
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


@torch.no_grad()
def continued(model, cache, ids):
    return model(input_ids=torch.tensor([list(ids)]), **with_cache(cache), use_cache=True).logits[0]


# ---- what prompts share


@st.composite
def families_of_prompts(draw):
    """Prompts that grow out of each other: each is a cut of an earlier one plus something new."""
    prompts = [draw(st.lists(st.integers(0, 2), min_size=1, max_size=40))]
    for _ in range(draw(st.integers(0, 7))):
        parent = draw(st.sampled_from(prompts))
        cut = draw(st.integers(0, len(parent)))
        prompts.append(parent[:cut] + draw(st.lists(st.integers(0, 2), min_size=0 if cut else 1, max_size=20)))
    return prompts


def common(one, two):
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


@given(families_of_prompts())
def test_every_prompt_continues_its_best_partner(prompts):
    order = sharing_order(prompts)
    assert sorted(index for index, _ in order) == list(range(len(prompts)))
    for place, (index, shared) in enumerate(order):
        earlier = [prompts[other] for other, _ in order[:place]]
        # No prompt run before shares more; every prompt keeps a token of its own.
        assert shared == max((min(common(prompts[index], p), len(p) - 1, len(prompts[index]) - 1) for p in earlier), default=0)


@given(families_of_prompts(), st.integers(1, 20))
def test_branch_points_serve_every_later_prompt(prompts, least):
    order = sharing_order(prompts)
    for place in range(len(order)):
        later = [shared for _, shared in order[place + 1 :]]
        points = branch_points(later, 0, least)
        assert points == sorted(set(points))
        assert all(b - a >= least for a, b in pairwise([0, *points]))
        for count in range(1, len(later) + 1):
            usable = min(later[:count])  # what the prompt `count` places further shares with the present one
            best = max((point for point in points if point <= usable), default=0)
            assert usable - best < 2 * least or usable - best < least + min(later)


def test_a_depth_grid_costs_its_distinct_text():
    haystack, needle, question = list(range(100)), [500] * 5, [600] * 7
    prompts = [haystack[:at] + needle + haystack[at:] + question for at in (0, 25, 50, 75, 100)]
    # Every prompt runs what follows its needle's place; the stretches before them are run once.
    assert to_run(prompts) == 112 + sum(100 - at + 12 for at in (0, 25, 50, 75))
    assert to_run([haystack] * 4) == 100 + 3


def to_run(prompts):
    return sum(len(prompts[index]) - shared for index, shared in sharing_order(prompts))


# ---- leaves


def shared_prompts():
    base = tokens(60)
    return [
        base[:20] + tokens(9, 1),
        base[:45] + tokens(3, 2),
        base[:45] + tokens(12, 3),
        base[:60],
        base[:60],
        tokens(7, 4),
        base[:20] + tokens(30, 5),
    ]


def test_leaf_passes_equal_plain_forwards(model):
    prompts, seen, ran = shared_prompts(), [], 0
    with attached(model):
        for leaf in leaves(model, prompts):
            assert list(leaf.ids) == prompts[leaf.index]
            assert leaf.past.get_seq_length() + len(leaf.rest) == len(leaf.ids)
            ran += len(leaf.rest)
            got = continued(model, leaf.past, leaf.rest)
            seen.append((leaf.index, got))
    assert sorted(index for index, _ in seen) == list(range(len(prompts)))
    assert ran <= to_run(prompts) < sum(map(len, prompts))
    for index, got in seen:
        torch.testing.assert_close(got, plain_logits(model, prompts[index])[-len(got) :], **tolerance(model))


def test_what_a_receiver_appends_or_leaves_out_harms_nobody(model):
    prompts = shared_prompts()
    with attached(model):
        for leaf in leaves(model, prompts):
            if leaf.index % 3 == 0:
                prefill(model, leaf.past, leaf.rest[: len(leaf.rest) // 2])
                continue
            got = continued(model, leaf.past, leaf.rest)
            torch.testing.assert_close(got, plain_logits(model, prompts[leaf.index])[-len(got) :], **tolerance(model))
            continued(model, leaf.past, tokens(5, 99))


def test_forks_grow_independently(model):
    start, one, two = tokens(30), tokens(6, 1), tokens(4, 2)
    with attached(model):
        cache = full_cache(model)
        prefill(model, cache, start)
        first, second = fork(cache), fork(cache)
        got = [continued(model, first, one), continued(model, second, two), continued(model, cache, two)]
        third = fork(first)
        got.append(continued(model, third, two))
        got.append(continued(model, first, two[:1]))
        assert [c.get_seq_length() for c in (cache, first, second, third)] == [34, 37, 34, 40]
    texts = [start + one, start + two, start + two, start + one + two, start + one + two[:1]]
    for logits, text in zip(got, texts, strict=True):
        torch.testing.assert_close(logits, plain_logits(model, text)[-len(logits) :], **tolerance(model))


def test_a_fork_can_be_cut_unless_there_is_a_recurrent_state(model):
    start, rest = tokens(30), tokens(6, 1)
    with attached(model):
        cache = full_cache(model)
        prefill(model, cache, start)
        if as_model(model).is_hybrid:
            with pytest.raises(HeadwiseError, match="a recurrent state cannot be cut"):
                fork(cache, 12)
            return
        got = continued(model, fork(cache, 12), rest)
    torch.testing.assert_close(got, plain_logits(model, start[:12] + rest)[-6:], **tolerance(model))


@torch.no_grad()
def test_rows_over_a_shared_past_equal_separate_runs(model):
    start, rows = tokens(30), torch.tensor([tokens(7, seed) for seed in (1, 2, 3)])
    with attached(model):
        past = full_cache(model)
        prefill(model, past, start)
        with shared_past(model, past, 3) as cache:
            parts = [
                model(input_ids=rows[:, a:b], **with_cache(cache), use_cache=True).logits for a, b in ((0, 5), (5, 6), (6, 7))
            ]
            assert cache.get_seq_length() == 37
            with pytest.raises(HeadwiseError, match="cannot be nested"), shared_past(model, past, 2):
                pass
        again = continued(model, past, rows[0].tolist())
    got = torch.cat(parts, dim=1)
    for row, logits in zip(rows.tolist(), got, strict=True):
        torch.testing.assert_close(logits, plain_logits(model, start + row)[-7:], **tolerance(model))
    torch.testing.assert_close(again, plain_logits(model, start + rows[0].tolist())[-7:], **tolerance(model))


# ---- greedy decoding


def test_a_guess_is_what_followed_the_longest_match():
    assert guess([1, 2, 3, 4, 9, 2, 3], 2) == [4, 9]
    assert guess([5, 3, 7, 1, 2, 3, 8, 4, 2, 3], 1) == [8]  # two tokens match, not only the newest
    assert guess([1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]  # a loop goes on
    assert guess([1, 2, 3], 4) == guess([7], 4) == guess([7, 7], 0) == []


@pytest.mark.slow
def test_drafts_from_the_text_do_not_change_greedy_answers(model):
    ids = tokens(20) * 2 + tokens(6, 3)
    expected = generated(model, ids, set(), 24)
    with attached(model):
        for said in (0, 1, 7):
            cache = full_cache(model)
            prefill(model, cache, ids[:-1])
            assert decode_one(model, cache, ids, set(), 24, expected[:said]) == expected
        cache = full_cache(model)
        assert decode_rows(model, cache, ids, set(), 24, 2) == [expected] * 2
        stop = {expected[5]}
        assert decode_one(model, full_cache(model), ids, stop, 24) == generated(model, ids, stop, 24)


def test_a_copying_answer_takes_few_passes():
    """A model that repeats its text: drafts of eight tokens come true."""
    (copier, _), passes = planted_copier(), []
    text = [0, *torch.arange(20, 32).tolist() * 3]
    handle = copier.register_forward_hook(lambda *_: passes.append(1))
    with attached(copier):
        answer = decode_one(copier, full_cache(copier), text, set(), 24)
    handle.remove()
    assert answer == tuple(text[1:25])
    assert len(passes) <= 4


# ---- rows that nobody reads


@torch.no_grad()
def test_leaving_out_rows_of_the_last_layer_changes_no_logit_that_is_read(model):
    ids = tokens(40)
    with attached(model):
        for start in (0, 17):
            cache = full_cache(model)
            prefill(model, cache, ids[:start])
            whole = torch.tensor([ids[start:]])
            with last_rows(model, 5), observe(model, spans=[(3, 9)]) as seen:
                got = model(input_ids=whole, **with_cache(cache), use_cache=True, logits_to_keep=5).logits[0]
                statistics = (seen.argmax, seen.mass)
            torch.testing.assert_close(got, plain_logits(model, ids)[-5:], **tolerance(model))
            again = continued(model, cache, tokens(3, 5))  # the cache holds all keys and values
            torch.testing.assert_close(again, plain_logits(model, ids + tokens(3, 5))[-3:], **tolerance(model))
            with observe(model, spans=[(3, 9)]) as seen:
                cache = full_cache(model)
                prefill(model, cache, ids[:start])
                continued(model, cache, ids[start:])
            assert torch.equal(statistics[0], seen.argmax)
            torch.testing.assert_close(statistics[1], seen.mass, equal_nan=True, **tolerance(model))


# ---- answers from drafts


def lively(model, limit):
    """(prompt, its greedy answer of `limit` tokens, a token that comes up in the answer at step 3 or later for the first time).

    Random models like to repeat themselves; this looks for a prompt on which they do not.
    """
    for seed in range(40):
        ids = tokens(40, seed)
        said = list(generated(model, ids, set(), limit))
        for step in range(limit - 3, 2, -1):
            if said.index(said[step]) == step:
                return ids, said, said[step]
    raise RuntimeError("no prompt found")


def generated(model, ids, stop, limit):
    """transformers' own greedy answer, stop token included."""
    whole = torch.tensor([ids])
    options = {"max_new_tokens": limit, "do_sample": False, "eos_token_id": sorted(stop) or None, "pad_token_id": 1}
    return tuple(model.generate(whole, attention_mask=torch.ones_like(whole), **options)[0, len(ids) :].tolist())


def answered(model, ids, gold, stop, limit):
    """Our answers: as a variant over a shared past (two rows), and traced."""
    hybrid = as_model(model).is_hybrid
    with attached(model):
        past = full_cache(model)
        prefill(model, past, ids[:-1])
        answers = answer_variants(model, Leaf(0, tuple(ids), past), gold, [0, 1], lambda _: nullcontext(), stop, limit)
        assert past.get_seq_length() == len(ids) - 1
    with observe(model) as seen:
        leaf = next(iter(leaves(model, [ids])))
        traced = traced_answer(model, seen, leaf, gold, stop, limit, hybrid)
    assert answers[0].ids == answers[1].ids == tuple(traced.ids)
    assert answers[0].gold_logprob == pytest.approx(answers[1].gold_logprob, abs=1e-4)
    assert answers[0].gold_logprob == pytest.approx(traced.gold_logprob, abs=1e-4)
    assert traced.argmax.shape[-1] == len(traced.ids)
    return tuple(traced.ids), traced


@pytest.mark.slow
def test_drafts_never_change_the_answer(model):
    ids, said, last = lively(model, 12)
    stop, end = {last}, said.index(last) + 1
    wrong = next(t for t in range(2, 96) if t not in said)
    drafts = {
        "right": said[:end],
        "right, and more": said[:12],
        "right, without its end": said[: end - 1],
        "wrong at step 0": [wrong, *said[1:end]],
        "wrong in the middle": [*said[: end // 2], wrong, *said[end // 2 + 1 : end]],
        "a stop token that the model does not say": [*said[:1], *stop, *said[1:3]],
        "nothing": [],
    }
    short = ("right, and more", "wrong in the middle", "nothing")
    for limit, names in ((20, drafts), (end, short[:1]), (end - 1, short), (1, short)):
        expected = generated(model, ids, stop, limit)
        assert expected == tuple(said[: min(end, limit)])
        for name in names:
            assert answered(model, ids, drafts[name], stop, limit)[0] == expected, (name, limit)
    assert answered(model, ids, said, set(), 12)[0] == tuple(said)


def test_gold_logprob_is_the_log_probability_of_the_gold_answer(model):
    ids, gold = tokens(40), tokens(5, 9)
    logprobs = plain_logits(model, ids + gold).log_softmax(-1)
    expected = sum(logprobs[len(ids) - 1 + i, token].item() for i, token in enumerate(gold))
    assert answered(model, ids, gold, set(), 3)[1].gold_logprob == pytest.approx(expected, abs=1e-4)


def test_rows_end_each_at_their_own_stop():
    """Variants that behave differently: the block of the open rows is entered for them alone."""
    model, entered = tiny_model("llama"), []
    ids, said, last = lively(model, 8)

    @contextmanager
    def enter(variants):
        entered.append(list(variants))
        yield

    with attached(model):
        past = full_cache(model)
        prefill(model, past, ids[:-1])
        answers = answer_variants(model, Leaf(0, tuple(ids), past), said[:2], ["a", "b"], enter, {last}, 8)
        assert [answer.ids for answer in answers] == [tuple(said[: said.index(last) + 1])] * 2
        answer_variants(model, Leaf(0, tuple(ids), past), said[:2], ["a"], enter, {said[2]}, 8)
    assert entered == [["a", "b"], ["a", "b"], ["a"]]


def test_answers_end_where_the_models_positions_end():
    model = tiny_model("gpt2", n_positions=48)
    ids = tokens(40)
    # The last token of the answer is predicted from position 47.
    assert len(answered(model, ids, tokens(3, 8), set(), 50)[0]) == 9


def test_logits_that_are_not_finite_are_refused():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 3] = float("nan")
    with (
        attached(model),
        pytest.raises(HeadwiseError, match=r"logits are not finite \(NaN or infinity\); try --dtype float32") as error,
    ):
        verify_draft(model, full_cache(model), tokens(20), tokens(3))
    assert "\n" not in str(error.value)


# ---- traced answers against the official procedure

TRACED = (*FAMILIES, "mistral", "gemma2", "smollm3", "qwen2")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("draft", ["right", "wrong"])
def test_traced_answers_equal_the_official_loop(name, draft):
    model = tiny_model(name, seed=2)
    ids, said, last = lively(model, 10)
    stop, span = {last}, (5, 38)
    hits, own, argmax = official_copy_run(model, ids, span, stop, 10)
    gold = said if draft == "right" else [*said[:2], (said[2] + 1) % 96, *said[3:]]
    got, traced = answered(model, ids, gold, stop, 10)
    assert list(got) == own
    assert torch.equal(traced.argmax, argmax)
    found = copy_hits(traced.argmax, torch.tensor(ids), torch.tensor(own), span)
    assert torch.equal(found.sum(-1), hits)


def test_the_official_loop_restores_the_attention_of_the_model():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    before = plain_logits(model, tokens(10))
    official_copy_run(model, tokens(20), (3, 9), set(), 2)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(plain_logits(model, tokens(10)), before)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_planted_hits_equal_the_official_loop(kv_heads):
    model, tokenizer = planted_copier(3, 4, 2, 1, kv_heads=kv_heads)
    task = planted_task()
    needle = task.needles[3]
    text = f"{task.texts[0][:600]} {needle['needle']} {task.texts[0][600:900]}\nAnswer: {needle['answer_prefix']}"
    ids = tokenizer.encode(text)
    answer = tokenizer.encode(" " + needle["answer"], add_special_tokens=False)
    start = next(i for i in range(len(ids)) if ids[i : i + len(answer)] == answer)
    stop = {tokenizer.get_vocab()["\n"]}
    for gold in (answer, [*answer, *tokenizer.encode(".\n", add_special_tokens=False)], answer[::-1]):
        hits, own, argmax = official_copy_run(model, ids, (start, start + len(answer)), stop, 20)
        got, traced = answered(model, ids, gold, stop, 20)
        assert list(got) == own
        assert torch.equal(traced.argmax, argmax)
        assert hits[2, 1] == len(answer) == hits.sum()
        found = copy_hits(traced.argmax, torch.tensor(ids), torch.tensor(own), (start, start + len(answer)))
        assert torch.equal(found.sum(-1), hits)


# ---- run directories

CELL = {"scores": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}, [{"depth": 0.5, "answer": "é\n"}]


def test_cells_come_back_as_they_were_saved(tmp_path):
    directory = RunDirectory(tmp_path / "deep" / "run", {"lengths": (128, 256), "seed": 0})
    assert directory.load("a-1") is None
    directory.save("a-1", *CELL)
    arrays, info = RunDirectory(tmp_path / "deep" / "run", {"seed": 0, "lengths": (128, 256)}).load("a-1")
    assert info == CELL[1]
    assert list(arrays) == ["scores"]
    assert arrays["scores"].dtype == np.float32
    assert np.array_equal(arrays["scores"], CELL[0]["scores"])
    assert sorted(p.name for p in (tmp_path / "deep" / "run").iterdir()) == ["a-1.npz", "run.json"]  # no temporary files
    directory.remove()
    assert not (tmp_path / "deep" / "run").exists()


def test_a_directory_belongs_to_one_run(tmp_path):
    RunDirectory(tmp_path / "run", {"seed": 0}).save("a", *CELL)
    with pytest.raises(HeadwiseError, match="belongs to a run with other options; delete it or choose another --output"):
        RunDirectory(tmp_path / "run", {"seed": 1})
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadwiseError, match="is a file, not a run directory"):
        RunDirectory(tmp_path / "file", {})


def test_a_broken_cell_counts_as_unfinished(tmp_path):
    directory = RunDirectory(tmp_path / "run", {})
    directory.save("a", *CELL)
    path = tmp_path / "run" / "a.npz"
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-1], whole[:3], b"", b"not a cell", whole[:60] + b"\0" * 40 + whole[100:]):
        path.write_bytes(broken)
        assert directory.load("a") is None, broken[:10]
    directory.save("a", *CELL)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("key", ["", "../a", "a/b", "a b", "a\0"])
def test_bad_cell_names_are_refused(tmp_path, key):
    directory = RunDirectory(tmp_path / "run", {})
    with pytest.raises(HeadwiseError, match="is no cell name; use letters, digits"):
        directory.save(key, *CELL)
    with pytest.raises(HeadwiseError, match="is no cell name"):
        directory.load(key)
