"""Checkers of support: shared words, entailment models, the micro-world's exact one; and what stands beside the score."""

import json

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from headwise.evaluation.decoders import PLAIN
from headwise.evaluation.entailment import EntailmentChecker
from headwise.evaluation.grounded import SupportOptions, describe_support, judged_answer, measure_support
from headwise.evaluation.support import LexicalOverlap, check_answer, coverage
from headwise.heads import HeadwiseError
from headwise.heads.errors import NoSuccessfulRunError
from headwise.models.model import Model
from headwise.prompts.encoder import PieceEncoder
from headwise.prompts.grounded import GroundedRecord
from headwise.prompts.grounded_prompts import GroundedComposer
from headwise.prompts.passages import Passage
from headwise.report.faithful_tables import support_table
from headwise.runtime.rundir import RunDirectory
from headwise.testing.tiny import tiny_model
from headwise.testing.tokenizers import character_tokenizer, word_tokenizer
from headwise_lab.faithful import ExactChecker, grounded_records
from headwise_lab.microworld.grounded import corrupted
from headwise_lab.microworld.registry import make_example
from headwise_lab.microworld.support import check_support

MILL = (Passage("Ada Low built the mill in 1804."), Passage("Bo Hay built the church."))
TEXTS = "Ada Low built the mill in 1804 . Bo Hay sold church dogs bark"


class Given:
    """A checker that knows which sentence each chunk supports."""

    name = "given"

    def __init__(self, table):
        self.table = table

    def scores(self, pairs):
        return np.asarray([self.table.get(pair, 0.0) for pair in pairs])

    def describe(self):
        return {"checker": self.name}


def nli(folder, labels, seed=0, **more):
    """A tiny random classifier on disk."""
    torch.manual_seed(seed)
    tokenizer = word_tokenizer([TEXTS])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
    names = dict(enumerate(labels))
    config = BertConfig(
        vocab_size=len(tokenizer), num_labels=len(labels), id2label=names, label2id={v: k for k, v in names.items()}, **sizes | more
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return nli(tmp_path_factory.mktemp("nli"), ["contradiction", "neutral", "ENTAILMENT"])


def test_a_sentence_counts_by_its_best_chunk_and_an_answer_by_the_mean():
    checker = Given({("Yes.", MILL[0].text): 0.2, ("Yes.", MILL[1].text): 0.9, ("No.", MILL[0].text): 0.3})
    found = check_answer(checker, "Yes. No.", MILL)
    assert found.sentences == ("Yes.", "No.")
    assert found.scores.tolist() == [0.9, 0.3]
    assert found.chunks == (MILL[1].text, MILL[0].text)
    assert (found.mean, found.supported, found.error) == (pytest.approx(0.6), 0.5, "incomplete")
    assert check_answer(checker, "No.", MILL).error == "unsupported"
    assert check_answer(checker, "Yes.", MILL).error == "none"
    nothing = check_answer(checker, "Yes.", ())
    assert (nothing.mean, nothing.chunks) == (0, ("",))
    empty = check_answer(checker, "", MILL)
    assert (empty.mean, empty.supported, empty.error) == (None, None, "")


def test_shared_words_are_a_weak_checker():
    told = MILL[0].text
    pairs = [("Ada Low built it.", told), ("The mill built Ada Low.", told), ("Dogs bark.", told), ("...", "x"), ("It is.", "It was.")]
    said = LexicalOverlap().scores(pairs)
    assert said.tolist() == [1, 1, 0, 0, 0.5]  # the second one is nonsense, and no better checker would take it


def test_coverage_is_that_of_the_best_reference():
    checker = LexicalOverlap()
    assert coverage(checker, "Ada Low built the mill.", ["Bo Hay.", "Ada Low built the mill. Bo Hay built the church."]) == pytest.approx(
        (1 + 1 / 4) / 2
    )
    assert coverage(checker, "Anything.", []) is None
    assert coverage(checker, "", ["Ada."]) == 0


def test_the_score_is_the_probability_of_entailment(folder):
    checker = EntailmentChecker(str(folder))
    pair = ("Ada Low built the mill", MILL[0].text)
    given = checker._tokenizer(pair[1], pair[0], return_tensors="pt")
    with torch.no_grad():
        wanted = checker._model(**given).logits.softmax(-1)[0, 2].item()
    assert checker.scores([pair]).tolist() == pytest.approx([wanted])
    assert 0 < wanted < 1


def test_pairs_are_read_once_in_batches_and_only_if_they_share_a_word(folder):
    checker, alone = EntailmentChecker(str(folder), batch=2), EntailmentChecker(str(folder), batch=1)
    pairs = [("Ada Low built the mill", MILL[0].text), ("Ada Low sold the mill", MILL[0].text), ("Bo Hay sold the church", MILL[1].text)]
    unlike = ("dogs bark", MILL[0].text)
    found = checker.scores([*pairs, unlike, pairs[0]])
    assert found[3] == 0
    assert found[4] == found[0]
    assert (checker.read, checker.skipped) == (3, 1)
    assert found[:3] == pytest.approx([alone.scores([pair])[0] for pair in pairs], abs=1e-6)  # padding changes nothing
    checker.scores([*pairs, unlike])
    assert (checker.read, checker.skipped) == (3, 1)
    assert checker.scores([]).shape == (0,)


def test_long_chunks_are_cut_and_sentences_are_not(folder):
    checker = EntailmentChecker(str(folder))
    assert 0 < checker.scores([("Ada Low", "Ada Low built the mill " * 40)])[0] < 1
    with pytest.raises(HeadwiseError, match="cannot read a sentence beside a chunk within 64 tokens"):
        checker.scores([("Ada Low " * 40, "Ada")])


def test_a_checkpoint_is_told_from_another_one(folder, tmp_path):
    told = [EntailmentChecker(str(one)).describe() for one in (folder, nli(tmp_path, ["contradiction", "neutral", "ENTAILMENT"], seed=1))]
    assert told[0]["weights"] != told[1]["weights"]


@pytest.mark.parametrize("labels", [["SUPPORTS", "REFUTES"], ["entailment", "not_entailment"], ["unsupported", "supported"]])
def test_labels_of_many_models_are_known(tmp_path, labels):
    checker = EntailmentChecker(str(nli(tmp_path, labels)))
    assert checker._places == [1 if labels[0] == "unsupported" else 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["LABEL_0", "LABEL_1"], r"none of its labels \(LABEL_0, LABEL_1\) is called entailment or supported"),
        (["negative", "positive"], "none of its labels"),
        (["not_entailment", "unsupported"], "none of its labels"),
    ],
)
def test_other_classifiers_are_refused(tmp_path, labels, message):
    with pytest.raises(HeadwiseError, match=message) as caught:
        EntailmentChecker(str(nli(tmp_path, labels)))
    assert "\n" not in str(caught.value)


def test_folders_without_a_trained_classifier_are_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    for given, message in (
        (tmp_path / "empty", "holds no config.json"),
        (tmp_path / "none", "no entailment model"),
        ("", "an entailment model is needed: entailment:FOLDER"),
    ):
        with pytest.raises(HeadwiseError, match=message) as caught:
            EntailmentChecker(str(given), offline=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(HeadwiseError, match="at least 1 pair; got 0"):
        EntailmentChecker(str(folder), batch=0)
    checker = EntailmentChecker(str(folder))
    checker._model.bert.save_pretrained(tmp_path / "bare")
    checker._tokenizer.save_pretrained(tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config | {"id2label": {"0": "entailment", "1": "other"}}))
    with pytest.raises(HeadwiseError, match=r"holds no weights for classifier\..*, so its labels were never trained"):
        EntailmentChecker(str(tmp_path / "bare"))


def test_the_exact_checker_says_what_the_generator_knows():
    checker, seen = ExactChecker(), set()
    for seed in range(25):
        rng = np.random.default_rng(seed)
        example = corrupted(make_example("grounded", "test", rng), rng)
        documents = [Passage(example.context_text.replace("Passage", "\nPassage").replace(":", ":\n"))]
        said = example.turns[-1].answer_text
        claims = check_support(said, example)
        found = check_answer(checker, said + ".", documents)
        assert list(found.labels) == [claim.label for claim in claims] == [label for _, label in example.info["claims"]]
        assert found.scores.tolist() == [float(label == "supported") for label in found.labels]
        seen |= set(found.labels)
    assert seen == {"supported", "fabricated", "mis_combined"}


def test_records_of_the_micro_world_are_supported_by_their_documents_alone():
    checker = ExactChecker()
    for record in grounded_records(8, seed=3, wrong=True):
        reference = record.references[0]
        assert check_answer(checker, reference, record.documents).mean == 1
        assert coverage(checker, reference, record.references) == 1
        assert judged_answer(checker, reference, record)["coverage"] == 1
        assert check_answer(checker, reference, record.documents[:0]).mean == 0
        (answer,) = record.judged
        found = check_answer(checker, " ".join(one.text for one in answer.sentences), record.documents)
        assert list(found.labels) == [one.label for one in answer.sentences]
        assert 0 < found.mean < 1
    assert checker.labels(["Well then."], []) == ["unreadable"]
    assert checker.scores([("...", "x")]).tolist() == [0]


@pytest.fixture(scope="module")
def model():
    return Model(tiny_model("llama"), character_tokenizer())


RECORDS = [
    GroundedRecord("q one", (Passage("ab"),), ("Ada built it.",), name="1"),
    GroundedRecord("q two", (Passage("cd"),), facts=("Ada", "1804"), name="2"),
    GroundedRecord("q three", (Passage("ef"),), answerable=False, name="3"),
    GroundedRecord("no documents", ()),
    GroundedRecord("long", (Passage("x" * 400),)),
]
OPTIONS = SupportOptions(max_new_tokens=24)


def saying(model, texts):
    """A decoder that answers the records by their documents, whatever the model would say."""

    def decode(prompt, closed):
        asked = model.tokenizer.decode(list(prompt.ids))
        assert model.tokenizer.decode(list(closed.ids)) in asked.replace("\n\n", "\n") or asked.endswith("Answer:")
        return model.tokenizer.encode(next(said for mark, said in texts.items() if mark in asked), add_special_tokens=False)

    return decode


def run(model, directory=None, report=lambda *_: None):
    texts = {"q one": "Ada built ab. Bo ab.", "q two": "Ada built cd.", "q three": "I do not know."}
    shy = {"q one": "Ada ab.", "q two": "I don't know.", "q three": "ef."}
    composer = GroundedComposer(PieceEncoder(model.tokenizer))
    decoders = {"bold": saying(model, texts), "shy": saying(model, shy)}
    return measure_support(model, RECORDS, composer, LexicalOverlap(), decoders, OPTIONS, directory, report)


def test_what_makes_a_score_cheap_stands_beside_it(model):
    result = run(model)
    rows = {row["decoder"]: row for row in result.rows()}
    assert list(rows) == [PLAIN, "bold", "shy"]
    assert result.dropped == {"no documents": 1, "longer than the model's context": 1}
    bold, shy = rows["bold"], rows["shy"]
    assert (bold["questions"], bold["answered"], bold["refusals"], bold["words"]) == (2, 2, 0, 4)
    assert bold["support"] == pytest.approx(((1 / 3 + 1 / 2) / 2 + 1 / 3) / 2)
    assert (bold["full"], bold["incomplete"]) == (0, 0.5)
    assert bold["supported"] == pytest.approx(1 / 3)  # one of three sentences
    assert bold["coverage"] == pytest.approx((1 + 1 / 2) / 2)  # both content words of the reference; one of two facts
    assert (bold["unanswerable"], bold["unanswerable_refusals"]) == (1, 1)
    assert (shy["answered"], shy["refusals"], shy["unanswerable_refusals"]) == (1, 0.5, 0)
    assert shy["coverage"] == pytest.approx(0.25)  # half of the reference; the refusal covers nothing
    assert "difference" not in rows[PLAIN]
    both = [one for one in result.checked[:2] if one[PLAIN]["support"] is not None and not one[PLAIN]["refused"]]
    assert both, "the random model says nothing, so no difference is tested"
    assert bold["difference"] == pytest.approx(np.mean([one["bold"]["support"] - one[PLAIN]["support"] for one in both]))
    assert bold["p_corrected"] >= bold["p"]
    table = support_table(result.rows(), result.provenance["checker"])
    assert table.row_count >= 4


def test_an_interrupted_run_goes_on_where_it_stopped(model, tmp_path):
    composer = GroundedComposer(PieceEncoder(model.tokenizer))
    told = describe_support(model, RECORDS, composer, LexicalOverlap(), [PLAIN, "bold", "shy"], OPTIONS)
    seen = []

    def stop(done, total, _):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, RunDirectory(tmp_path / "run", told), stop)
    assert seen == [(1, 3), (2, 3)]
    again = run(model, RunDirectory(tmp_path / "run", told))
    assert again.to_json() == run(model).to_json()
    again.save(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["kind"] == "support"


def test_nothing_to_ask_is_said(model):
    composer = GroundedComposer(PieceEncoder(model.tokenizer))
    with pytest.raises(NoSuccessfulRunError, match=r"none of 1 questions can be asked \(no documents: 1\)"):
        measure_support(model, RECORDS[3:4], composer, LexicalOverlap())
    with pytest.raises(HeadwiseError, match="'plain' is greedy decoding"):
        measure_support(model, RECORDS, composer, LexicalOverlap(), {"plain": lambda prompt, closed: ()})
    with pytest.raises(HeadwiseError, match="max_new_tokens must be a whole number of at least 1"):
        SupportOptions(max_new_tokens=0)




def test_a_line_break_ends_an_answer_only_without_a_chat_template(model, monkeypatch):
    """Base models go on with further questions; chat models answer in paragraphs."""
    from headwise.evaluation import grounded

    tokenizer, seen = character_tokenizer(), []
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}\nA:"
    talking, (line,) = Model(model.hf, tokenizer), tokenizer.encode("\n", add_special_tokens=False)
    whole = grounded.checked_decoders

    def noted(model, decoders, stop, limit):
        seen.append(line in stop)
        return whole(model, decoders, stop, limit)

    monkeypatch.setattr(grounded, "checked_decoders", noted)
    for chat in (True, False):
        composer = GroundedComposer(PieceEncoder(tokenizer), chat=chat)
        measure_support(talking, RECORDS[:1], composer, LexicalOverlap(), options=SupportOptions(max_new_tokens=2))
    assert seen == [False, True]
