"""`headwise.find`: what it refuses, what detectors check when they are made, and answers that run on behind an end-of-text token."""

import numpy as np
import pytest

from headwise.heads import HeadScores, HeadwiseError, NoSuccessfulRunError
from headwise.methods.cafe.options import Evidence
from headwise.methods.compresskv.options import Semantic
from headwise.methods.copy.options import Copy
from headwise.methods.duo.options import Gates
from headwise.methods.influence.options import Proxy
from headwise.methods.query.options import Query
from headwise.models.model import Model
from headwise.prompts.needles import Needle
from headwise.prompts.passages import Passage, RankingExample
from headwise.runtime.detector import find
from headwise.testing.planted import planted_copier, planted_task


@pytest.fixture(scope="module")
def model():
    return Model(*planted_copier())


def small(**more):
    task = planted_task()
    return Copy(
        **{"lengths": 60, "depths": 2, "needles": [Needle(**row) for row in task.needles[:2]], "haystack": task.texts, **more}
    )


class Odd:
    name = "odd"

    def __init__(self, result):
        self.result = result

    def find(self, model, run):
        return self.result


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (Copy, r"Copy is a class; give an instance of it, such as Copy\(\)"),
        ("copy", r"'copy' is no detector; give one such as headwise.Copy\(lengths=\[512\]\)"),
        (None, "None is no detector"),
        (Odd([[1]]), "the detector 'odd' returned list, not HeadScores"),
        (Odd(HeadScores(np.zeros((1, 1)), "odd")), "returned scores of 1 layers x 1 heads, but .* has 2 layers x 4 heads"),
    ],
)
def test_what_is_no_detector_is_refused(model, detector, message):
    with pytest.raises(HeadwiseError, match=message):
        find(model, detector)


def test_what_is_no_model_is_refused(model):
    for given, message in (
        (model.hf, r"LlamaForCausalLM comes without its tokenizer; give headwise.Model\(hf, tokenizer\)"),
        (Model(model.hf), "was wrapped without a tokenizer"),
        ("lab-6m", r"'lab-6m' is a name; load the model first: headwise.load\('lab-6m'\)"),
        (7, "int is no model"),
    ):
        with pytest.raises(HeadwiseError, match=message) as error:
            find(given, Copy())
        assert "\n" not in str(error.value)


def test_needles_and_texts_may_be_given_in_python(model):
    found = find(model, small())
    assert found.values.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    assert found.provenance["grid"]["lengths"] == (60,)


def test_finished_parts_are_kept_where_asked(model, tmp_path):
    find(model, small(), directory=tmp_path / "run")
    assert len(list((tmp_path / "run").glob("*.npz"))) == 2
    with pytest.raises(HeadwiseError, match="other options"):
        find(model, small(rule="multiset"), directory=tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Copy, {"seed": -1}, "seed must be a whole number of at least 0; got -1"),
        (Query, {"seed": -1}, "seed must be"),
        (Gates, {"seed": -1}, "seed must be"),
        (Proxy, {"seed": -1}, "seed must be"),
        (Copy, {"lengths": []}, r"lengths must be positive whole numbers, like \[512, 1024\]; got \[\]"),
        (Copy, {"lengths": "512"}, "lengths must be positive whole numbers"),
        (Copy, {"lengths": [0]}, r"got \[0\]"),
        (Copy, {"depths": 2.5}, "depths must be a whole number"),
        (Copy, {"lengths": [90], "paper_grid": True}, "either lengths or the paper's grid"),
        (Semantic, {"min_runs": 0}, "min_runs must be"),
        (Query, {"rule": "set"}, "unknown rule 'set'; use mass, calibrated_mass, ndcg, mrr or contrastive"),
        (Query, {"trim": 2.0, "rule": "mass"}, "the rule mass does not read"),
        (Query, {"strict": True}, "give trim too"),
        (Query, {"temperature": 0.1}, "^temperature goes with the rule contrastive, not with calibrated_mass; leave it out$"),
        (Query, {"temperature": 0, "rule": "contrastive"}, "the temperature must be above 0; got 0"),
        (Query, {"max_passage_words": 0}, "max_passage_words must be"),
        (Evidence, {"doc_pool": "max"}, "unknown doc_pool 'max'; use sum or mean"),
        (Gates, {"lengths": [1, 2, 3]}, "the shortest and the longest text"),
    ],
)
def test_detectors_check_themselves(kind, options, message):
    with pytest.raises(HeadwiseError, match=message):
        kind(**options)


def test_answers_may_run_on_behind_the_end(model):
    """The planted model says a line break behind each answer; with ignore_eos it goes on, and the score stays."""
    short, long = find(model, small()), find(model, small(ignore_eos=True, max_new_tokens=20))
    assert long.provenance["options"]["ignore_eos"] is True
    assert max(len(cell["answer"]) for cell in short.provenance["cells"]) < max(
        len(cell["answer"]) for cell in long.provenance["cells"]
    )
    assert long.values[1, 2] == short.values[1, 2] == 1


def test_a_model_that_ends_at_once_is_told_so(model):
    lost = Needle(**dict(planted_task().needles[0]) | {"answer_prefix": "the river of stone is"})
    with pytest.raises(
        NoSuccessfulRunError, match=r"in 2 the model ended at once .*; try --ignore-eos, shorter --lengths, --chat for"
    ) as error:
        find(model, small(needles=[lost]))
    assert "\n" not in str(error.value)
    with pytest.raises(NoSuccessfulRunError) as error:
        find(model, small(needles=[lost], ignore_eos=True, max_new_tokens=5))
    assert "ended at once" not in str(error.value)
    cells = [{"answer": "", "recall": 0.0}]
    assert "--chat" not in str(Copy(chat=True).none_solved(cells))


EXAMPLES = [
    RankingExample(
        "what is the secret of alder?", (Passage("one two three four"), Passage("the secret"), Passage("five")), frozenset({1})
    )
]


def test_the_released_detection_can_be_asked_for(model):
    """Trimming head by head before summing, as the card says (step 5): against the slow rule, token by token."""
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.passages import PassageComposer
    from tests.reference import query as slow

    found = find(model, Query(data=EXAMPLES, trim=2.0, strict=True, wording="instructed"))
    assert found.score_version == 3
    assert found.provenance["scoring"] == {
        "span": "official",
        "trim": 2.0,
        "normalize": "sum",
        "strict": True,
        "null_query": "N/A",
    }
    order = [int(i) for i in np.random.default_rng([0, 21, 0]).permutation(3)]
    composer = PassageComposer(PieceEncoder(model.tokenizer), "instructed")
    prompt = composer.passages([EXAMPLES[0].passages[i] for i in order])
    asked, null = composer.query(EXAMPLES[0].query), composer.query("N/A")
    tables = [slow.attention_to_prefix(model.hf, prompt.ids, part.ids, part.span("official")) for part in (asked, null)]
    span = prompt.span(f"passage/{order.index(1) + 1}")
    wanted = [
        [slow.official_passage((a - b).tolist(), *span) for a, b in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)
    ]
    np.testing.assert_allclose(found.values, wanted, atol=1e-5)


def test_long_passages_are_cut_and_counted(model):
    found = find(model, Query(data=EXAMPLES, max_passage_words=2))
    assert (found.provenance["max_passage_words"], found.provenance["passages_cut"]) == (2, 1)
    assert find(model, Query(data=EXAMPLES)).provenance["passages_cut"] == 0
    evidence = find(model, Evidence(data=EXAMPLES, max_passage_words=2))
    assert (evidence.score, evidence.provenance["passages_cut"]) == ("evidence", 1)
