"""Training rows of the world models: every task comes up, answers weigh most, and resuming sees the same rows."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from headwise.lab import bundled_model
from headwise.lab.recipe.facts import FactMaker
from headwise.lab.recipe.mixture import ANSWER_WEIGHT
from headwise.lab.recipe.recipes import RECIPES, Phase
from headwise.lab.recipe.world_rows import CONTEXT_WEIGHT, MIXES, SIZES, Mix, WorldRows
from headwise.prompts import bundled_texts
from headwise.prompts.microworld import TASKS


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(bundled_model() / "tokenizer.json"))


@pytest.fixture(scope="module")
def rows(tokenizer):
    tokens = np.asarray(tokenizer.encode(bundled_texts()[0][:300_000], add_special_tokens=False).ids)
    return WorldRows(tokenizer, tokens, FactMaker(tokenizer, [bundled_texts()[0]]), seed=0)


def phase(mix="even"):
    return Phase(1, 1, (1,), mix=mix)


@pytest.mark.parametrize("mix", list(MIXES))
@pytest.mark.parametrize("length", [128, 256, 512])
def test_rows_are_full_and_answers_weigh_most(rows, length, mix):
    ids, weights = rows.batch(3, 24, length, phase(mix))
    assert ids.shape == weights.shape == (24, length)
    assert ids.min() >= 0
    assert ids.max() < 4096
    assert set(np.unique(weights)) <= {0.0, CONTEXT_WEIGHT, 1.0, 2.0, ANSWER_WEIGHT}
    assert 0.04 < (weights == ANSWER_WEIGHT).mean() < 0.5
    assert (ids[:, 0] == 0).mean() > 0.9


def test_a_step_gives_the_same_rows_again_and_another_step_others(rows):
    one, again, other = (rows.batch(step, 4, 128, phase())[0] for step in (5, 5, 6))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_all_tasks_come_up_and_fit(rows):
    assert all(set(mix.tasks) == set(SIZES) == set(TASKS) for mix in MIXES.values())
    rng = np.random.default_rng(0)
    for task in TASKS:
        mix = Mix(books=0, needles=0, repeats=(0, 0), small=0.5, tasks={task: 1.0})
        for room, least in ((128, 0.2), (256, 0.4), (512, 0.6)):
            made = [rows._text(rng, room, mix) for _ in range(30)]
            fitting = [len(found[0]) for found in made if found is not None]
            assert len(fitting) >= least * 30 * (room > 128 or task not in ("key_value", "grounded")), (task, room, fitting)
            assert max(fitting, default=0) <= room


def test_every_recipe_is_complete():
    for name, recipe in RECIPES.items():
        lengths = {length for phase in (*recipe.phases, recipe.polish) for length in phase.lengths}
        assert max(lengths) <= recipe.positions, name
        assert recipe.start is None or recipe.start in RECIPES
        assert 0 < recipe.rate(recipe.steps - 1) < 0.2
        shapes = {recipe.shape(step) for step in range(recipe.steps)}
        assert all(rows * length <= 16_384 for rows, length in shapes)
