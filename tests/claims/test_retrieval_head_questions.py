"""Claims about questions without retrieval heads: about the real world, about the micro-world, and lab models beside one another."""

import gzip
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from headwise.claims import ledger
from headwise.claims.claim import judge
from headwise.claims.experiment import Bench, NotTestable
from headwise.claims.retrieval_head import facts, paraphrased, quiz, quiz_losses, reasoning, sizes
from headwise.claims.retrieval_head.facts import BELONGS, CAPITAL, RELATIONS, Asker, read_relations
from headwise.evaluation.ablation_table import AblationResult
from headwise.evaluation.variants import Variant, head_variants
from headwise.heads import HeadScores, HeadSet, HeadwiseError
from headwise.models.model import Model
from headwise.stats.metrics import begins_with
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer

related = pytest.importorskip("headwise_lab.claims.related")
world_questions = pytest.importorskip("headwise_lab.claims.world_questions")

SMALL = sizes.Sizes(facts=12, two_step=6, item_controls=3, candidates=30)
COUNTRIES = [f"land{letter}" for letter in "abcdefghijklmnop"]


def told(findings):
    """Claim -> verdict."""
    return {key: verdict.verdict for key, verdict in judge(ledger.claims(), findings).items()}


def relation_rows():
    """Sixteen pairs per relation; things belong to the countries whose capitals are known."""
    for name in RELATIONS:
        subjects = COUNTRIES if name == CAPITAL else [f"{name[:3]}{i}x" for i in range(16)]
        objects = COUNTRIES if name in BELONGS else [f"{name[-4:]}o{chr(97 + i)}" for i in range(16)]
        samples = [{"subject": one, "object": other} for one, other in zip(subjects, objects, strict=True)]
        yield {"name": name, "prompt_templates": ["{} has"], "prompt_templates_zs": ["{} has", "what has {}? it has"], "samples": samples}


@pytest.fixture
def data(tmp_path):
    lines = "\n".join(json.dumps(row) for row in relation_rows())
    (tmp_path / "relations.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    return tmp_path


@pytest.fixture(scope="module")
def tiny():
    return Model(tiny_model("llama", max_position_embeddings=2048), character_tokenizer(), "tiny")


@pytest.fixture
def bench(tiny, tmp_path):
    return Bench("tiny", "real", lambda: tiny, tmp_path / "work")


@pytest.fixture
def knows_all(monkeypatch):
    """Every fact counts as known, which needs no model."""
    monkeypatch.setattr(Asker, "_right", lambda self, asked, quiz, name: list(asked))


def test_relations_are_read_or_refused_in_one_line(data, tmp_path):
    found = read_relations(data)
    assert list(found) == list(RELATIONS)
    assert (found[CAPITAL].stated, found[CAPITAL].asked, len(found[CAPITAL].pairs)) == ("{} has", "what has {}? it has", 16)
    with pytest.raises(HeadwiseError, match=r"no relations in .*nowhere"):
        read_relations(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    for text, part in (("{", "holds no LRE relations"), ('{"name": "country capital city"}', "holds no LRE relations"), ("", "lacks the relation")):
        (tmp_path / "other" / "relations.jsonl").write_text(text)
        with pytest.raises(HeadwiseError, match=part) as refused:
            read_relations(tmp_path / "other")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "wanted", "expected"),
    [
        ("Paris.", "Paris", True), (" the United States", "United States", True), ("paris", "Paris", True), ("Rome", "Paris", False),
        ("apple", "a", False), ("a, for apple", "a", True), ("Parisian", "Paris", False), ("1969", "19", False), ("北京市", "北京", True),
    ],
)  # fmt: skip
def test_an_answer_begins_with_what_is_wanted(answer, wanted, expected):
    assert begins_with(answer, wanted) is expected


def test_written_steps_are_judged_by_their_end():
    mark = facts.right_step
    assert mark("Japan", "Tokyo", "Japan, and the capital of Japan is Tokyo.") == (1, 1)
    assert mark("Japan", "Tokyo", "China, and the capital of China is Tokyo.") == (1, 0)
    assert mark("Japan", "Tokyo", "Japan, and the capital of Japan is Osaka.\nTokyo is Tokyo") == (0, 1)
    assert mark("Japan", "Tokyo", "Tokyo") == (0, 0)


def test_no_answer_stands_in_an_example_and_the_gold_one_is_right(tiny, bench, data, knows_all):
    quizzes = {one.task: one for one in Asker(bench, read_relations(data), SMALL).quizzes()}
    assert {task: len(one.items) for task, one in quizzes.items()} == {"steps": 6, "direct": 6, "closed_book": 12, "contradiction": 12}
    decode = tiny.tokenizer.decode
    for task, one in quizzes.items():
        for item in one.items:
            text, gold = decode(item.prompt.ids), decode(item.prompt.gold)
            front = text.removesuffix(item.question).removesuffix(item.context + "\n")
            assert text.endswith(item.question)
            assert gold == f" {item.answer}.\n"
            assert item.judge(gold.strip()) == ((1, 0) if task == "contradiction" else (1,) * len(one.numbers))
            assert item.answer not in front
            assert 3 <= front.count(".\n") <= 6
    said = quizzes["contradiction"].items[0]
    assert said.context == f"Passage: {said.question.removeprefix('what has ').split('?')[0]} has {said.answer}."
    countries = Counter(item.answer.split(",")[0] for item in quizzes["steps"].items)
    assert [item.answer.rsplit(" ", 1)[1] for item in quizzes["steps"].items] == [item.answer for item in quizzes["direct"].items]
    assert set(countries) <= set(COUNTRIES)


def test_the_same_seed_asks_the_same(bench, data, knows_all):
    def ids(seed):
        quizzes = Asker(bench, read_relations(data), replace(SMALL, seed=seed)).quizzes()
        return [item.prompt.ids for one in quizzes for item in one.items]

    assert ids(0) == ids(0) != ids(1)


@pytest.mark.slow
def test_a_model_that_knows_nothing_is_not_tested(bench, data):
    with pytest.raises(NotTestable, match="knows too few facts for steps, direct, closed_book, contradiction"):
        Asker(bench, read_relations(data), replace(SMALL, candidates=2)).quizzes()


def random_scores():
    return HeadScores(np.random.default_rng(0).random((4, 8)), "copy")


def ask(bench, one):
    return quiz_losses.answered(bench, random_scores(), SMALL, one, "answer", (4, 2), 3, ("any_layer",))


@pytest.mark.slow
def test_draws_of_both_kinds_are_compared_where_the_model_can(bench, data, knows_all, monkeypatch):
    quizzes = Asker(bench, read_relations(data), SMALL).quizzes()
    for one in quizzes[:2]:
        assert set(ask(bench, one).details["means"]) == {"none"}  # a model that cannot do the task loses nothing
    monkeypatch.setattr(quiz_losses, "FLOOR", 0.0)
    found = ask(bench, quizzes[0])
    assert set(found.details["means"]) == {"none", "top", "bottom", "random", "any_layer", "top 2", "bottom 2"}
    kinds = Counter((row["kind"], row["k"]) for row in found.details["rows"] if row["metric"] == "exact")
    assert kinds == Counter([("none", 0), *((kind, 4) for kind in ("top", "bottom", "random", "any_layer"))])
    assert ask(bench, quizzes[0]).details == found.details  # from the kept parts


@pytest.mark.slow
def test_the_experiment_answers_its_claims_and_goes_on(bench, data, knows_all, monkeypatch):
    (data / "relations-lre").mkdir()
    (data / "relations.jsonl.gz").rename(data / "relations-lre" / "relations.jsonl.gz")
    bench.data = data
    monkeypatch.setattr(quiz_losses, "FLOOR", 0.0)
    monkeypatch.setattr(reasoning, "sizes_of", lambda bench: replace(SMALL, facts=6, two_step=3, item_controls=2))
    monkeypatch.setattr(reasoning, "ranked", lambda bench, sizes, report: random_scores())
    one = next(one for one in ledger.experiments() if one.name == "heads-facts")
    first, again = one.run(bench), one.run(bench)
    assert repr(first) == repr(again)  # from the kept parts; as text, because NaN is not equal to itself
    assert first.details["k"] == 4
    assert set(told(first.findings).values()) == {"not testable"}  # a tiny model answers nothing, so every gate is missed
    bench.data = None
    (why,) = {finding.missing for finding in one.run(bench).findings.values()}
    assert why == "needs the data set relations-lre: give its parent folder with --data"


def answered(task, whole, top, random=None, items=40, k=8):
    """Made-up answers: shares right of the whole model, without the top heads, without random ones."""
    shares = {"none": whole, "top": top, "bottom": whole, "random": whole if random is None else random}
    shares["any_layer"] = shares["random"]
    variants, rows = [], []
    for kind, share in shares.items():
        for draw in range(3 if kind in ("random", "any_layer") else 1):
            variants.append(Variant(kind, 0 if kind == "none" else k, draw, HeadSet((), (8, 8))))
            rows.append((np.arange(items) < share * items).astype(float))
    table, info = np.array(rows), tuple({"item": i} for i in range(items))
    sweep = sweeps_of(tuple(variants), info, table)
    means = {"none": [whole, 0.1], "top": [top, 0.6]}
    return quiz_losses.Answered(task, k, whole >= quiz_losses.FLOOR, sweep, {"none": table[0], "top": table[1]}, {"means": means})


def sweeps_of(variants, info, table):
    from headwise.claims.retrieval_head.sweeps import Sweep

    return Sweep(AblationResult(variants, info, {"exact": table}, np.empty((len(table), 0)), 0, {}))


@pytest.mark.parametrize(
    ("steps", "book", "written", "memory"),
    [
        ((0.9, 0.1), (1.0, 1.0), "held", "held"),
        ((0.9, 0.1), (1.0, 0.5), "held", "not held"),
        ((0.9, 0.9), (1.0, 1.0), "not held", "not held"),
        ((0.2, 0.0), (1.0, 1.0), "not testable", "not testable"),
        ((0.4, 0.0), (0.4, 0.4), "not testable", "not testable"),
    ],
)
def test_written_steps_beside_memory(steps, book, written, memory):
    tasks = {
        "steps": answered("steps", *steps), "closed_book": answered("closed_book", *book), "direct": answered("direct", 0.1, 0.1),
        "contradiction": answered("contradiction", 0.9, 0.2),
    }  # fmt: skip
    real, lab = told(reasoning.judged(tasks, SMALL)), told(world_questions.judged(tasks, tasks, 0))
    assert (real["heads.reasoning.written"], real["heads.reasoning.memory"]) == (written, memory)
    assert (lab["heads-world.steps"], lab["heads-world.memory"], lab["heads-world.memory.everywhere"]) == (written, memory, memory)
    assert (real["heads.reasoning.direct"], lab["heads-world.direct"]) == ("not testable", "not testable")
    assert (real["heads.reasoning.passage"], lab["heads-world.passage"]) == ("held", "held")


def test_random_heads_that_cost_as_much_are_told():
    steps = answered("steps", 0.9, 0.1, 0.2)
    verdicts = told({f"heads.reasoning.{name}": finding for name, finding in reasoning.written(steps).items()})
    assert verdicts["heads.reasoning.written.layer"] == "not held"
    weak = {"heads-world.steps.weakest": world_questions.weakest(steps)}
    assert told(weak)["heads-world.steps.weakest"] == "held"


@pytest.mark.parametrize(("literal", "other", "verdict"), [(0.9, 0.3, "held"), (0.9, 0.85, "not held"), (0.5, 0.1, "not testable")])
def test_paraphrased_needles_are_judged_behind_gates(literal, other, verdict):
    rng = np.random.default_rng(0)
    asked = {kind: paraphrased.Asked(np.clip(mean + 0.05 * rng.normal(size=24), 0, 1), None, {})
             for kind, mean in (("literal", literal), ("paraphrased", other))}  # fmt: skip
    verdicts = told(paraphrased.judged(asked, SMALL))
    assert verdicts == {"heads.paraphrased.recall": verdict, "heads.paraphrased.causal": "not testable"}


# ---- the micro-world


@pytest.mark.parametrize("scope", ["answer", "all"])
def test_answers_without_heads_are_those_of_one_set_at_a_time(tiny, scope):
    one = world_questions.world_quiz(tiny, "closed_book", 1, 0)
    sets = [variant.heads for variant in head_variants(random_scores(), (4,), 2, 0)]
    found = quiz.answer_items(tiny, one, sets, "zero", scope)
    assert found.marks.shape == (len(sets), 2, 1)
    for row, heads in enumerate(sets):
        alone = quiz.answer_items(tiny, one, [heads], "zero", scope)
        assert alone.text[0] == found.text[row]
        assert alone.logprob[0] == pytest.approx(found.logprob[row], abs=1e-3)
    assert len({round(float(value), 4) for value in found.logprob[:, 0]}) > 2


def test_items_are_new_and_of_the_test_split(tiny):
    items = world_questions.draw_items(tiny, "steps", 4, 0)
    assert len({item.example.context_text for item in items}) == 4
    assert {item.example.split for item in items} == {"test"}
    assert all("So:" in item.example.turns[-1].answer_text for item in items)
    first, other = (world_questions.draw_items(tiny, "steps", 4, seed)[0].prompt for seed in (0, 1))
    assert first == items[0].prompt != other


# ---- lab models beside one another


def trained(name, **recipe):
    return related.Trained(name, None, {"rows": "world", "family": "llama", "start": None, **recipe})


def test_relations_come_from_recipes():
    base, long = trained("world-6m"), trained("world-6m-long", start="world-6m")
    assert related.relation(base, long) == related.EXTENDED
    assert related.relation(trained("other", seed=1), long) == related.SEED
    assert related.relation(base, trained("q", family="qwen3")) == related.FAMILY
    assert related.relation(base, trained("lab-6m", rows="needles")) == related.TEXT


def test_lab_models_are_found_beside_their_recipes(tmp_path):
    mine = related.Trained.read(related.bundled_models()["world-6m"])
    assert [one.name for one in related.others(mine)].count("world-6m") == 0
    assert {related.relation(mine, one) for one in related.others(mine)} >= {related.EXTENDED, related.SEED, related.FAMILY}
    with pytest.raises(NotTestable, match="needs a model beside its recipe"):
        related.Trained.read(tmp_path)


def test_the_pair_that_speaks_most_against_a_claim_decides():
    def pair(kind, value):
        numbers = {"ceiling": 1.0, "shuffled": (0.1, -0.2, 0.4), "layers_alone": 0.5, "top_8_shared": 0.2}
        return {"other": f"{kind} {value}", "relation": kind, "pearson": (value, value - 0.1, value + 0.1)} | numbers

    pairs = [pair("extended", 0.99), pair("extended", 0.7), pair("other_seed", 0.1), pair("other_seed", -0.2)]
    found = {f"heads-models.{kind}": related.worst(pairs, kind) for kind in ("extended", "other_seed", "other_family")}
    assert list(told(found).values()) == ["not held", "held", "not testable"]
    assert found["heads-models.other_seed"].numbers["pearson"][0] == -0.2
    assert found["heads-models.extended"].note == "against extended 0.7"
