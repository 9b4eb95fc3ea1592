"""The map of all heads in the terminal: every head at its place, as dark as it is strong, and nothing where there is no room."""

import io

import numpy as np
import pytest
from rich.console import Console

from headwise.heads import HeadScores
from headwise.report.terminal_map import STEPS, TerminalMap, stepped

NAN = float("nan")


def printed(values, width=80, score="copy"):
    console = Console(file=io.StringIO(), width=width)
    console.print(TerminalMap(HeadScores(np.array(values, dtype=float), score)), soft_wrap=True)
    return console.file.getvalue().splitlines()


def test_every_head_is_at_its_place():
    assert printed([[0.0, 0.25, NAN], [0.26, 0.75, 1.0]], width=80) == [
        "      0",
        "L0    ··░░××",
        "L1    ▒▒▓▓██",
        "      · up to 0   ░ to 0.25   ▒ to 0.5   ▓ to 0.75   █ to 1   × not scored",
    ]


def test_learnt_scales_begin_at_one():
    assert printed([[1.0, 0.98, 1.02]], width=80, score="scale")[1] == "L0    ····██"


def test_one_character_where_two_do_not_fit_and_nothing_where_one_does_not():
    row = [[1.0, *[0.0] * 15]]
    assert printed(row, width=38)[:2] == ["      0               8", "L0    ██" + "··" * 15]
    assert printed(row, width=37)[:2] == ["      0       8", "L0    █" + "·" * 15]
    assert printed(row, width=21) == []


def test_weak_layers_of_deep_models_are_left_out_and_counted():
    values = np.zeros((60, 4))
    values[7, 2] = 1.0
    assert printed(values)[1:3] == ["L7    ····██··", "59 layers without a head above 0.25 left out"]
    assert len(printed(values[:48])) == 50


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([-1.0, 0.0, 0.5, 1.0], [0, 0, 2, 4]),  # up to 0 is the first step
        ([0.0, 0.0], [0, 0]),
        ([-4.0, -3.0, 0.0], [0, 1, 4]),  # nothing above 0: from the lowest
        ([0.5, 0.5], [4, 4]),  # equal scores above 0 are not drawn as 0
        ([NAN, 1e-9], [-1, 4]),
    ],
)
def test_steps(values, steps):
    found, edges = stepped(HeadScores(np.array([values]), "copy"))
    assert found.tolist() == [steps]
    assert len(edges) == len(STEPS)
