"""Examples filled up with passages of others."""

import pytest

from headwise.heads.errors import HeadwiseError
from headwise.prompts.passages import Passage, RankingExample
from headwise.runtime.distractors import fill_up


def example(query, texts, answers=(), gold=(0,)):
    return RankingExample(query, tuple(Passage(text) for text in texts), frozenset(gold), "", tuple(answers))


def test_the_most_similar_passages_of_others_are_added_behind_the_own_ones():
    whales = example("Which whale sings?", ["The humpback whale sings."], ["humpback"])
    others = [
        example("a", ["A blue whale hardly sings."]),
        example("b", ["The humpback whale is known to sing, too."]),
        example("c", ["Bread is baked in ovens."]),
    ]
    filled = fill_up([whales, *others], 2)
    assert [passage.text for passage in filled[0].passages] == ["The humpback whale sings.", "A blue whale hardly sings."]
    assert filled[0].gold == whales.gold
    assert all(len(one.passages) == 2 for one in filled)


def test_passages_that_mention_an_answer_are_never_added():
    rows = [example("who?", [f"It was Ada {i}."], ["Ada"]) for i in range(3)]
    assert all(len(one.passages) == 1 for one in fill_up(rows, 3))


def test_examples_with_enough_passages_stay_as_they_are():
    rows = [example("who?", ["a", "b", "c"]), example("what?", ["d", "e"])]
    assert fill_up(rows, 2) == rows
    with pytest.raises(HeadwiseError, match="at least 2 passages"):
        fill_up(rows, 1)
