"""The needle grid: prompts for every length, needle and depth, grouped so that each group shares one haystack window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from headwise.heads.errors import PromptError, TooLongError
from headwise.prompts.haystack import Haystack, Window
from headwise.prompts.needles import Needle, NeedleComposer
from headwise.prompts.prompt import Prompt, Turn


@dataclass(frozen=True)
class GridOptions:
    """What a grid consists of.

    Attributes:
        lengths: context lengths in tokens (needle included).
        depths: where needles stand, fractions in [0, 1].
        windows: haystack windows per needle and length.
        part: share of the haystack to draw from, as (from, to) fractions.
        seed: of windows and of the order of groups; at least 0.

    Raises:
        PromptError: a value is out of its range.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    windows: int = 1
    part: tuple[float, float] = (0.0, 1.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths or any(length < 1 for length in self.lengths):
            raise PromptError(f"lengths must be positive numbers of tokens; got {list(self.lengths)}")
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise PromptError(f"depths must lie in [0, 1]; got {depth:g} (a percentage? write {depth / 100:g})")
        if not self.depths:
            raise PromptError("at least one depth is needed")
        if self.windows < 1:
            raise PromptError(f"windows must be at least 1; got {self.windows}")
        if self.seed < 0:
            raise PromptError(f"the seed must be at least 0; got {self.seed}")


@dataclass(frozen=True)
class Task:
    """Everything that decides the prompts of a run.

    Attributes:
        needles: what is hidden and asked for.
        haystack: what it is hidden in.
        composer: the wording around it.
        grid: lengths, depths and windows.
    """

    needles: Sequence[Needle]
    haystack: Haystack
    composer: NeedleComposer
    grid: GridOptions

    def first_needles(self, count: int) -> Task:
        """The same task with the first needles only."""
        return replace(self, needles=tuple(self.needles[:count]))


@dataclass(frozen=True)
class Group:
    """Prompts over one haystack window: one needle, one length, all depths.

    Attributes:
        key: name of its cell in a run directory.
        needle: what is hidden.
        prompts: one per depth.
        turns: what is said in each of them, for conversations that go on.
        info: what is known of each prompt: length, depth, needle, window, realised_depth.
    """

    key: str
    needle: Needle
    prompts: tuple[Prompt, ...]
    info: tuple[dict[str, Any], ...]
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class GroupSpec:
    """What a group will be, before its prompts are made.

    Attributes:
        length: context length in tokens, needle included.
        needle: index among the task's needles.
        window: number of the haystack window, from 0.
    """

    length: int
    needle: int
    window: int

    @property
    def key(self) -> str:
        """Name of its cell in a run directory."""
        return f"length{self.length}-needle{self.needle:03d}-window{self.window:03d}"


def group_specs(options: GridOptions, needles: int) -> list[GroupSpec]:
    """All groups of a grid.

    Args:
        options: lengths, windows and seed.
        needles: how many there are.

    Returns:
        windows x lengths x needles specs in a seeded order, so that the first ones already mix lengths and needles.
    """
    specs = [GroupSpec(n, i, w) for w in range(options.windows) for n in options.lengths for i in range(needles)]
    order = np.random.default_rng([options.seed, 1]).permutation(len(specs))
    return [specs[i] for i in order]


def plan_groups(task: Task, positions: int | None) -> list[GroupSpec]:
    """All groups of a task in their order, every needle checked at every length before any work is done.

    Args:
        task: what to run.
        positions: what the model can hold in tokens, or None.

    Returns:
        As `group_specs`.

    Raises:
        PromptError: a prompt and its answer do not fit into the model, or a needle not into a length.
    """
    specs = group_specs(task.grid, len(task.needles))
    for spec in specs:
        _haystack_tokens(spec, task, positions)
    return specs


def make_group(spec: GroupSpec, task: Task, positions: int | None) -> Group:
    """Compose the prompts of a group.

    Args:
        spec: which one; together with the task it decides every id.
        task: where it comes from.
        positions: as for `plan_groups`.

    Returns:
        One prompt per depth, in the order of the grid's depths.

    Raises:
        PromptError: as `plan_groups`, or the haystack is too short, or a needle would stand far from its depth (see
            `Window.checked_place`).
    """
    needle, options = task.needles[spec.needle], task.grid
    room = _haystack_tokens(spec, task, positions)
    window = task.haystack.window(room, (options.seed, 2, spec.length, spec.needle, spec.window), options.part)
    places = [window.checked_place(depth) for depth in options.depths]
    prompts = tuple(task.composer.compose(window, needle, depth) for depth in options.depths)
    info = tuple(
        {
            "length": spec.length,
            "depth": round(depth, 6),
            "needle": spec.needle,
            "window": spec.window,
            "realised_depth": round(at, 6),
        }
        for depth, at in zip(options.depths, (place / room for place in places), strict=True)
    )
    turns = tuple(task.composer.turn(window, needle, depth) for depth in options.depths)
    return Group(spec.key, needle, prompts, info, turns)


def shared_places(cells: Iterable[Mapping[str, Any]]) -> list[dict[str, int]]:
    """Where depths differ in name only: needles stand between sentences, and a short context has few places there.

    Args:
        cells: what is told of runs, as `Group.info`.

    Returns:
        One row per context length, ascending, in which some group has fewer places than depths: `length`, `depths`, and the fewest `places`
        that a group has.
    """
    groups: dict[tuple[Any, ...], list[float]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell[name] for name in ("length", "needle", "window")), []).append(cell["realised_depth"])
    fewest: dict[int, tuple[int, int]] = {}
    for (length, *_), real in groups.items():
        if len(set(real)) < len(real):
            fewest[length] = min(fewest.get(length, (len(real), len(real))), (len(set(real)), len(real)))
    return [{"length": length, "depths": depths, "places": places} for length, (places, depths) in sorted(fewest.items())]


def _haystack_tokens(spec: GroupSpec, task: Task, positions: int | None) -> int:
    """Tokens of the haystack around the needle; refuses what does not fit."""
    needle, composer = task.needles[spec.needle], task.composer
    room = spec.length - composer.context_cost(needle)
    if room < 1:
        raise PromptError(f"a context of {spec.length} tokens has no room for the needle {needle.needle!r}; use a longer one")
    bare = composer.compose(Window((), (0,)), needle, 0.0)
    longest = room + len(bare.ids) + len(bare.gold)
    if positions is not None and longest > positions:
        raise TooLongError(
            f"a context of {spec.length} tokens makes a prompt of {longest}, but the model has {positions} positions; "
            f"choose --lengths of at most {spec.length - (longest - positions)}"
        )
    return room


MOST_DEPTHS = 1000


def even_depths(count: int) -> tuple[float, ...]:
    """`count` depths from 0 to 1, evenly spaced; a single one is the middle.

    Raises:
        PromptError: a count outside 1 to `MOST_DEPTHS`.
    """
    if not 1 <= count <= MOST_DEPTHS:
        raise PromptError(f"the number of depths must be at least 1 and at most {MOST_DEPTHS}; got {count}")
    return (0.5,) if count == 1 else tuple(round(i / (count - 1), 6) for i in range(count))


def default_lengths(positions: int | None) -> tuple[int, ...]:
    """Context lengths of a first run.

    Args:
        positions: what the model can hold in tokens; None: no limit.

    Returns:
        At most three powers of two from 128 to 4,096 tokens, the largest that leave 128 positions for question and answer.

    Raises:
        PromptError: the model has fewer than 256 positions.
    """
    known = [n for n in (128, 256, 512, 1024, 2048, 4096) if positions is None or n + 128 <= positions]
    if not known:
        raise PromptError(f"the model has only {positions} positions; give --lengths yourself")
    return tuple(known[-3:])


def paper_lengths(positions: int | None) -> tuple[int, ...]:
    """20 evenly spaced lengths from 1,000 to 50,000 tokens, or what fits of them (Wu et al. 2024, sec. 3).

    Args:
        positions: what the model can hold in tokens; None: no limit.

    Returns:
        Ascending lengths; 128 positions are left for question and answer.

    Raises:
        PromptError: the model has too few positions for such a grid.
    """
    most = 50_000 if positions is None else min(50_000, positions - 128)
    least = min(1_000, max(64, most // 20))
    if most <= least:
        raise PromptError(f"the model has only {positions} positions; the paper's grid does not fit, give --lengths")
    return tuple(round(n) for n in np.linspace(least, most, 20))


def describe_task(task: Task) -> dict[str, Any]:
    """All that decides a task's prompts, as plain data."""
    return {
        "grid": asdict(task.grid),
        **task.composer.describe(),
        "needles": [asdict(needle) for needle in task.needles],
        "haystack_tokens": len(task.haystack),
        "haystack_digest": task.haystack.digest,
    }
