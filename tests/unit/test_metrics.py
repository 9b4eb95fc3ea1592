"""How answers are judged, in scripts with and without spaces."""

import pytest

from headwise.stats.metrics import exact_match, judged, unigram_recall, units


@pytest.mark.parametrize(
    ("answer", "gold", "recall"),
    [
        ("It is Pimbro Asket, I think.", "pimbro asket", 1.0),
        ("Pimbro", "Pimbro Asket", 0.5),
        ("the the", "the the the", 2 / 3),
        ("", "x", 0.0),
        ("x", "...", 0.0),
        ("naïve café", "Café naïve", 1.0),
        ("是苹果灯笼。", "苹果灯笼", 1.0),  # one "word" for a splitter at white space
        ("苹果树", "苹果灯笼", 0.5),
        ("答案是amber lantern。", "Amber Lantern", 1.0),
        ("灯灯", "灯笼", 0.5),
        ("りんごです", "りんご", 1.0),
        ("ｶｷﾞ １２", "カギ 12", 1.0),  # half-width kana and full-width digits
        ("น้ำตาล", "น้ำตาล", 1.0),
        ("사과 등불", "사과 등불", 1.0),
    ],
)
def test_unigram_recall(answer, gold, recall):
    assert unigram_recall(answer, gold) == pytest.approx(recall)


def test_units_are_words_or_characters_with_their_marks():
    assert units("Red 苹果42号 lamp_1") == ["red", "苹", "果", "42", "号", "lamp_1"]
    assert [len(unit) for unit in units("น้ำ")] == [3, 1]
    assert units("It's 3.5") == ["it", "s", "3", "5"]


def test_an_exact_answer_may_end_with_the_full_stop_of_its_script():
    assert exact_match("苹果灯笼。\n更多", "苹果灯笼")
    assert exact_match(" Pimbro.", "Pimbro")
    assert not exact_match("苹果", "苹果灯笼")
    assert judged("苹果", "苹果灯笼") == {"answer": "苹果", "recall": 0.5, "exact": False}
