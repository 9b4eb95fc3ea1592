"""Tracing: features and sources against slow loops, a planted head whose reading is known, step by step as after the fact, and refusals."""

import hashlib
import json

import numpy as np
import pytest
import torch

from headwise.attention.token_rows import token_rows
from headwise.caches.shared import full_cache
from headwise.heads import HeadFileError, HeadSet, HeadwiseError
from headwise.methods.trace.answer import probe_for, trace, trace_answer, trace_generated
from headwise.methods.trace.fit import fit_probe, prepare, split, usable_records
from headwise.methods.trace.formula import label_of, passage_scores
from headwise.methods.trace.options import FitOptions
from headwise.models.fingerprint import weights_digest
from headwise.models.forward import forward
from headwise.models.model import Model
from headwise.prompts.answers import (
    allowed_positions,
    answer_ids,
    continuation_of,
    passages_of,
    prompt_of_documents,
    prompt_of_text,
)
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.passages import Passage
from headwise.prompts.prompt import Prompt, Span
from headwise.runtime.head_probe import Probe, load_probe, shipped_probe
from headwise.runtime.rundir import RunDirectory
from headwise.runtime.token_cases import read_newest
from headwise.stats.probes import Platt
from headwise.testing.planted_records import planted_records
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer
from tests.reference.trace import slow_rows

HEADS = [(3, 5), (0, 1), (0, 0), (2, 2)]
WEIGHTS = [0.3, -0.2, 1.0, 0.5]
OPTIONS = FitOptions(negatives="paired", among=10**6, wording="cloze", shots=0)


@pytest.fixture(scope="module")
def planted():
    return planted_records()


@pytest.fixture(scope="module")
def probe(planted):
    model, records = planted
    return fit_probe(prepare(model, records, [(0, 2), (1, 2), (1, 0)], OPTIONS))


def asked(planted, i=0, others=()):
    """A question behind its swapped passage and others, in the wording of the records."""
    model, records = planted
    from headwise.prompts.knowledge import KnowledgeComposer

    composer = KnowledgeComposer(PieceEncoder(model.tokenizer), "cloze")
    return records[i], composer.opened(records[i], swapped=True, passages=[*others, records[i].swapped])


def test_rows_are_those_of_slow_loops():
    hf = tiny_model("llama")
    hf.set_attn_implementation("eager")
    ids = [2 + (7 * i * i + 3 * i) % 90 for i in range(26)]
    model = Model(hf, character_tokenizer())
    features, scores = slow_rows(hf, ids, 19, HEADS, WEIGHTS, 20)
    with token_rows(model, HeadSet.of(HEADS, model.heads.shape), WEIGHTS, 20) as rows, torch.no_grad():
        hf(torch.tensor([ids[:-1]]), use_cache=False)
    last = rows.newest(torch.tensor([ids[-1]]))
    found = [*(row for _, row in rows.rows.values()), last]
    assert list(rows.rows) == list(range(19, 24))
    torch.testing.assert_close(torch.stack([row.features[0] for row in found]), features, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.stack([row.scores[0] for row in found]), scores, atol=1e-4, rtol=1e-4)


def test_a_batch_with_padding_gives_what_each_prompt_gives_alone():
    model = Model(tiny_model("llama"), character_tokenizer())
    heads = HeadSet.of(HEADS, model.heads.shape)
    prompts = [Prompt(tuple(2 + (5 * i * i + k) % 90 for i in range(n))) for k, n in ((0, 17), (3, 9), (1, 12))]
    together = read_newest(model, heads, prompts, WEIGHTS)
    tokens = [4, 5, 6]
    for i, prompt in enumerate(prompts):
        alone = read_newest(model, heads, [prompt], WEIGHTS)
        np.testing.assert_allclose(together.features(tokens)[i], alone.features(tokens[i : i + 1])[0], atol=1e-5)
        looks = together.rows.looks()[i][:, together.padding[i] :]
        torch.testing.assert_close(looks, alone.rows.looks()[0], atol=1e-5, rtol=1e-4)
        assert together.ranks(tokens)[i] == alone.ranks(tokens[i : i + 1])[0]


def test_the_planted_head_is_found_and_trusted(probe):
    assert probe.facts["auc"]["paired"]["auc"] > 0.99
    assert int(np.argmax(np.abs(probe.weights))) == 1
    assert probe.facts["localisation"]["top1"] == 1.0
    assert probe.facts["records"]["usable"] + sum(probe.facts["records"]["dropped"].values()) == probe.facts["records"]["given"]
    assert probe.facts["auc"]["closed"] is None  # it says no word of its own without a passage
    assert probe.facts["accuracy"] > 0.97


def test_a_read_word_is_called_read_and_its_place_is_found(planted, probe):
    model, records = planted
    record, prompt = asked(planted, 0, [records[7].passage, records[9].passage])
    found = trace_generated(model, prompt, probe, limit=8)
    first = found.tokens[0]
    assert model.tokenizer.decode([first.token]).strip() == record.swapped_answer
    assert first.label == "read"
    assert first.probability > 0.75
    assert first.position == prompt.spans["answer/1"].start
    assert first.passage == "passage/3"
    assert next(iter(found.passages)) == "passage/3"
    wrong = model.tokenizer.encode(f" {records[3].answers[0]}", add_special_tokens=False)
    (never,) = trace_answer(model, prompt, wrong, probe).tokens
    assert never.label == "remembered"


def test_step_by_step_is_as_after_the_fact(planted, probe):
    model, _ = planted
    _, prompt = asked(planted, 4)
    live = trace_generated(model, prompt, probe, limit=5)
    after = trace_answer(model, prompt, live.ids, probe)
    np.testing.assert_allclose(live.features, after.features, atol=1e-5)
    np.testing.assert_allclose(live.scores, after.scores, atol=1e-5)
    assert [t.label for t in live.tokens] == [t.label for t in after.tokens]
    whole = trace_answer(model, prompt, (*prompt.ids, *live.ids), probe)
    assert whole.ids == live.ids


def test_generate_of_transformers_is_traced_and_two_texts_do_not_mix(planted, probe):
    model, _ = planted
    _, prompt = asked(planted, 2)
    _, other = asked(planted, 3)
    with trace(model, probe) as seen:
        for one in (other, prompt):
            ids = torch.tensor([one.ids])
            said = model.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    (found,) = seen.traces([said[0, len(prompt.ids) :].tolist()])
    assert found.prompt.ids == prompt.ids
    np.testing.assert_allclose(found.features, trace_answer(model, prompt, found.ids, probe).features, atol=1e-5)
    with pytest.raises(HeadwiseError, match="no documents"):
        _ = found.passages
    with pytest.raises(HeadwiseError, match="have read 2 tokens"):
        seen.traces([[1]])


def test_a_padded_batch_is_traced_row_by_row(planted, probe):
    model, records = planted
    prompts = [asked(planted, 5)[1], asked(planted, 6, [records[1].passage])[1]]
    longest = max(len(p.ids) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p.ids)) + list(p.ids) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p.ids)) + [1] * len(p.ids) for p in prompts])
    with trace(model, probe, prompts) as seen:
        said = model.hf.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False)
    answers = said[:, longest:].tolist()
    for prompt, answer, found in zip(prompts, answers, seen.traces(answers), strict=True):
        alone = trace_answer(model, prompt, answer, probe)
        np.testing.assert_allclose(found.features, alone.features, atol=1e-4)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_bit_for_bit_what_it_was(planted, probe, fails):
    model, _ = planted
    _, prompt = asked(planted)
    ids = torch.tensor([prompt.ids])
    before, digest, hooks = model.hf(ids).logits, weights_digest(model.hf), count_hooks(model.hf)
    try:
        with trace(model, probe, prompt):
            inside = model.hf(ids).logits
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    torch.testing.assert_close(inside, before, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.hf(ids).logits, before)
    assert weights_digest(model.hf) == digest
    assert count_hooks(model.hf) == hooks


def count_hooks(hf):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hf.modules())


def test_gradients_pass_through_the_block(planted, probe):
    model, _ = planted
    _, prompt = asked(planted)
    hidden = model.hf.get_input_embeddings()(torch.tensor([prompt.ids])).detach()
    assert hidden.ndim == 3
    with trace(model, probe, prompt):
        out = model.hf(torch.tensor([prompt.ids])).logits
    assert out.requires_grad


def test_drafts_that_are_taken_back_are_refused(planted, probe):
    model, _ = planted
    _, prompt = asked(planted)
    ids = torch.tensor([prompt.ids])
    with trace(model, probe, prompt), torch.no_grad():
        cache = full_cache(model.hf)
        forward(model.hf, ids, cache)
        forward(model.hf, ids[:, :3], cache)
        cache.crop(-2)
        with pytest.raises(HeadwiseError, match="drafts that are taken back"):
            forward(model.hf, ids[:, :1], cache)


def test_embeddings_are_refused_and_nothing_traced_is_said(planted, probe):
    model, _ = planted
    _, prompt = asked(planted)
    with trace(model, probe, prompt) as seen:
        with pytest.raises(HeadwiseError, match="nothing was traced"):
            seen.traces()
        with pytest.raises(HeadwiseError, match="token ids"):
            model.hf(inputs_embeds=model.hf.get_input_embeddings()(torch.tensor([prompt.ids])))


def test_the_file_gives_the_probe_back(probe, tmp_path):
    path = tmp_path / "probe.json"
    probe.save(path)
    again = load_probe(path)
    assert again == probe
    with pytest.raises(HeadFileError, match="exists"):
        probe.save(path)
    probe.save(path, overwrite=True)
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize(
    "name", ["weights", "bias", "threshold", "heads", "band", "shift", "tokenizer_digest", "weights_digest", "facts", "seal"]
)
def test_a_changed_file_is_refused(probe, tmp_path, name):
    path = tmp_path / "probe.json"
    probe.save(path)
    data = json.loads(path.read_text())
    data[name] = {"weights": [0.0] * 3, "heads": ["L0H0", "L0H1", "L1H1"], "band": [0.1, 0.2], "facts": {}}.get(name, 1)
    path.write_text(json.dumps(data))
    with pytest.raises(HeadFileError, match="was changed after it was written"):
        load_probe(path)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("band", [0.5], "two probabilities in order; got 0.5"),
        ("band", [0.1, 0.2, 0.3], "two probabilities in order; got 0.1 and 0.2 and 0.3"),
        ("weights", [float("nan")] * 3, "must be finite numbers"),
        ("facts", [], "its facts are no object"),
        ("facts", None, "its facts are no object"),
        ("facts", {"options": None}, "its facts are no object"),
        ("facts", {"auc": 5}, "its AUC are no numbers"),
        ("facts", {"auc": {"closed": {"auc": "<b>", "low": 0.1, "high": 0.2}}}, "its AUC are no numbers"),
    ],
)
def test_a_changed_file_with_a_new_seal_is_refused_where_it_makes_no_sense(probe, tmp_path, name, value, told):
    path = tmp_path / "probe.json"
    probe.save(path)
    data = json.loads(path.read_text()) | {name: value}
    del data["seal"]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps(data | {"seal": hashlib.sha256(text.encode()).hexdigest()}))
    with pytest.raises(HeadFileError, match=f"is a broken probe .*{told}"):
        load_probe(path)


@pytest.mark.parametrize(
    ("text", "told"), [("{}", "no probe"), ("[]", "no probe"), ("{", "no valid JSON"), ('{"headwise_probe": 9}', "version 9")]
)
def test_a_file_that_is_no_probe_is_refused(tmp_path, text, told):
    path = tmp_path / "probe.json"
    with pytest.raises(HeadFileError, match="no such probe"):
        load_probe(path)
    path.write_text(text)
    with pytest.raises(HeadFileError, match=told):
        load_probe(path)


def test_a_probe_of_another_model_or_tokenizer_is_refused(planted, probe):
    model, _ = planted
    other = planted_records(seed=1)[0]
    with pytest.raises(HeadwiseError, match="tokenizer"):
        probe_for(other, probe)
    with pytest.raises(HeadwiseError, match="has other weights"):
        probe_for(Model(other.hf, model.tokenizer), probe)
    with pytest.raises(HeadwiseError, match="belong to a model of 2 layers"):
        probe_for(Model(tiny_model("llama"), model.tokenizer), probe)
    with pytest.raises(HeadwiseError, match="comes with headwise"):
        probe_for(model, None)
    with pytest.raises(HeadwiseError, match="needs a tokenizer"), trace(Model(model.hf), probe):
        pass


def test_a_shipped_probe_is_found_by_the_weights(planted, probe, tmp_path):
    model, _ = planted
    probe.save(tmp_path / "planted.json")
    assert shipped_probe(model, tmp_path) == probe
    with pytest.raises(HeadwiseError, match="there are: planted-copier"):
        shipped_probe(planted_records(seed=1)[0], tmp_path)


def test_numbers_that_make_no_probe_are_refused():
    heads = HeadSet.of([(0, 0)], (1, 1))
    for given, told in (
        ({"weights": ()}, "one weight per head"),
        ({"bias": float("nan")}, "finite"),
        ({"band": (0.9, 0.1)}, "band"),
        ({"shift": 9}, "shift"),
    ):
        with pytest.raises(HeadwiseError, match=told):
            Probe(**({"heads": heads, "weights": (1.0,), "bias": 0.0, "threshold": 0.0, "calibration": Platt(1.0, 0.0)} | given))


@pytest.mark.slow
def test_few_records_are_refused_with_the_reasons(planted):
    model, records = planted
    with pytest.raises(HeadwiseError, match="3 usable records, and a probe needs at least 50"):
        prepare(model, records[:3], [(1, 2)], OPTIONS)
    with pytest.raises(HeadwiseError, match="is not among the 1 most likely tokens"):
        fit_probe(prepare(model, records, [(1, 2)], FitOptions(negatives="paired", among=1, wording="cloze", shots=0)))


def test_answers_that_begin_alike_are_dropped_and_counted(planted):
    model, records = planted
    from dataclasses import replace

    same = [replace(r, answers=(f"{r.swapped_answer} {r.answers[0]}",)) for r in records[:5]]
    fitting = prepare(model, [*same, *records[5:]], [(1, 2)], OPTIONS)
    assert fitting.dropped == {"the two answers begin with the same token": 5}
    assert len(fitting.records) == len(records) - 5


@pytest.mark.slow
def test_a_fit_goes_on_where_it_stopped_and_gives_the_same_bytes(planted, probe, tmp_path):
    model, records = planted
    fitting = prepare(model, records, [(0, 2), (1, 2), (1, 0)], OPTIONS)
    kept = RunDirectory(tmp_path / "run", fitting.describe())
    told = []

    def stop(done, total, _):
        told.append(done)
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_probe(fitting, kept, stop)
    again = fit_probe(fitting, kept)
    again.save(tmp_path / "a.json")
    probe.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert told[-1] == 40


def test_parts_are_disjoint_and_options_are_checked():
    parts = split(101, 3)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(101))
    for given in (
        {"negatives": "x"},
        {"memory": "x"},
        {"among": 0},
        {"penalty": 0.0},
        {"penalty": float("inf")},
        {"shots": -1},
        {"records": 0},
    ):
        with pytest.raises(HeadwiseError):
            FitOptions(**given)


def test_sources_leave_out_the_sink_special_tokens_and_wording():
    prompt = Prompt(tuple(range(10)), {"passage/1": Span(0, 4), "passage/2": Span(5, 8), "question": Span(8, 10)})
    allowed = allowed_positions(prompt, [6])
    assert np.flatnonzero(allowed).tolist() == [1, 2, 3, 5, 7]
    assert allowed_positions(Prompt(tuple(range(4))), [2]).tolist() == [False, True, False, True]
    scores = np.arange(10.0)
    assert passage_scores(scores, allowed, passages_of(prompt)) == {"passage/1": 6.0, "passage/2": 12.0}
    assert [label_of(p, (0.25, 0.75)) for p in (0.8, 0.2, 0.5, 0.75)] == ["read", "remembered", "unsure", "unsure"]


def test_prompts_of_users_have_passages():
    encoder = PieceEncoder(character_tokenizer())
    prompt = prompt_of_text(encoder, "one\n\ntwo\nthree\n\n\nwhat?")
    assert {name: encoder.decode(prompt.ids[a:b]) for name, (a, b) in prompt.spans.items()} == {
        "passage/1": "one",
        "passage/2": "two\nthree",
        "question": "what?",
    }
    windows = prompt_of_text(encoder, "one\r\n\r\ntwo\r\n \r\nwhat?")
    assert [encoder.decode(windows.ids[a:b]) for a, b in windows.spans.values()] == ["one", "two", "what?"]
    with pytest.raises(HeadwiseError, match="no documents"):
        passages_of(prompt_of_text(encoder, "only a question"))
    with pytest.raises(HeadwiseError, match="the prompt is empty"):
        prompt_of_text(encoder, " \n")
    asked = prompt_of_documents(encoder, "what?", [Passage("one"), Passage("two", "title")])
    assert list(passages_of(asked)) == ["passage/1", "passage/2"]
    with pytest.raises(HeadwiseError, match="no passages"):
        prompt_of_documents(encoder, "what?", [])


def test_answers_that_do_not_follow_are_refused():
    prompt = Prompt((1, 2, 3))
    assert continuation_of(prompt, [1, 2, 3, 9]) == (9,)
    assert continuation_of(prompt, [7]) == (7,)
    with pytest.raises(HeadwiseError, match="the answer is empty"):
        continuation_of(prompt, [])
    with pytest.raises(HeadwiseError, match="the answer is empty"):
        continuation_of(prompt, [1, 2, 3])
    with pytest.raises(HeadwiseError, match="no continuation of the prompt: they differ from token 3 on"):
        continuation_of(prompt, [1, 2, 4, 9])


def test_ids_outside_of_the_vocabulary_are_refused(planted, probe):
    model = planted[0]
    size = model.hf.config.vocab_size
    for prompt, answer in ((Prompt((3, size)), [4]), (Prompt((3, 4)), [5, size]), (Prompt((3, 4)), [-1]), (Prompt((3, 4)), [size, 5])):
        with pytest.raises(HeadwiseError, match=rf"^token id ({size}|-1) is outside of the model's vocabulary of {size} tokens"):
            trace_answer(model, prompt, answer, probe)


class Merging:
    """A tokenizer that joins letters and spaces into words, as byte-level ones do."""

    bos_token_id = None
    chat_template = None

    def __init__(self):
        self.words = []

    def encode(self, text, add_special_tokens=True):
        import re

        found = re.findall(r" ?\w+| ?[^\w\s]+|\s", text)
        self.words += [word for word in found if word not in self.words]
        return [self.words.index(word) for word in found]

    def decode(self, ids, **options):
        return "".join(self.words[i] for i in ids)

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}


def test_an_answer_whose_first_token_would_reach_into_the_prompt_is_refused():
    encoder = PieceEncoder(Merging())
    assert encoder.decode(answer_ids(encoder, Prompt(tuple(encoder.encode("It is in"))), "Paris .")) == " Paris ."
    with pytest.raises(HeadwiseError, match="no continuation of the prompt"):
        answer_ids(encoder, Prompt(tuple(encoder.encode("It is in "))), "Paris")
    with pytest.raises(HeadwiseError, match="the answer is empty"):
        answer_ids(encoder, Prompt(tuple(encoder.encode("It is in"))), "  ")


def test_usable_records_are_counted_by_reason(planted):
    model, records = planted
    fitting = prepare(model, records[:60], [(1, 2)], OPTIONS)
    from headwise.runtime.token_cases import measure_cases

    cases = measure_cases(model, fitting.heads, fitting.records[:16], fitting.composer, frozenset())
    good, reasons = usable_records(cases, FitOptions(negatives="paired", among=1))
    assert not good.any()
    assert sum(reasons.values()) == 16
    assert len(cases.looks) == len(cases.places) == len(cases.allowed) == 16
    assert all(len(row) == 1 for row in cases.places)
