"""Needle questions: the options of a detector that asks them, the prompts they stand for, and running those group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headwise.heads.errors import HeadwiseError, NoSuccessfulRunError
from headwise.runtime.options import check_least, check_seed, option, path_or, set_option, whole_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headwise.attention.observe import Observation
    from headwise.heads.progress import Report
    from headwise.models.model import Model
    from headwise.prompts.grid import Group, Task
    from headwise.prompts.needles import Needle
    from headwise.prompts.prompt import Prompt
    from headwise.runtime.answer import TracedAnswer
    from headwise.runtime.rundir import Cell, RunDirectory

# The last tenth of the haystack is kept for perplexity and calibration; needle prompts never use it.
PROMPT_PART = (0.0, 0.9)
PAPER_NEEDLES = 3


@dataclass(frozen=True)
class NeedleQuestions:
    """A needle (a sentence that holds an answer) in a haystack of other text, a question about it, and when an answer counts.

    Attributes:
        lengths: Context lengths in tokens; None takes three that fit the model.
        depths: Number of evenly spaced depths from 0 to 1.
        windows: Different stretches of the haystack per needle and length.
        needles: JSON lines with needle, question, answer and, if wanted, answer_prefix; the name of a bundled set (`detect`, `test`,
            `paraphrased`, `literal`, see `bundled_needles`); or `Needle`s. None takes the bundled ones that the task is for.
        haystack: Folder of texts, or the texts themselves; None takes three public-domain books.
        template: Prompt with `{context}`, `{question}` and, if wanted, `{answer_prefix}`.
        chat: Wrap the prompt in the model's chat template.
        chat_template_args: Variables for it, as a mapping or JSON. Thinking is off unless they switch it on.
        min_recall: A run counts if the unigram recall of its answer is above this, in [0, 1).
        max_new_tokens: Longest answer in tokens.
        ignore_eos: Let answers run on to `max_new_tokens`, as the released code does with most tokenizers.
        paper_grid: The grid of Wu et al. 2024, sec. 3: 20 lengths, the first three needles; `depths` stays as given (theirs is 10).
        seed: Of the haystack windows and of the order of the runs.
    """

    lengths: int | Sequence[int] | None = option(None, "Context lengths in tokens, e.g. 512,1024.", "three that fit")
    depths: int = option(10, "Number of evenly spaced depths.")
    windows: int = option(1, "Haystack windows per needle and length.")
    needles: str | Path | Sequence[Needle] | None = option(
        None,
        "JSON lines with needle, question, answer and, if wanted, answer_prefix; or a bundled set: detect, test, paraphrased, literal.",
        "the bundled ones",
    )
    haystack: str | Path | Sequence[str] | None = option(None, "Folder of .txt/.md files (.gz too).", "three public-domain books")
    template: str | None = option(None, "Prompt with {context}, {question}, {answer_prefix}.")
    chat: bool = option(False, "Wrap the prompt in the model's chat template.")
    chat_template_args: str | Mapping[str, Any] | None = option(None, "Variables for the chat template, as JSON.")
    min_recall: float = option(0.5, "A run counts if the unigram recall of its answer is above this.")
    max_new_tokens: int = option(50, "Longest answer in tokens.")
    ignore_eos: bool = option(
        False,
        "Neither an end-of-text token nor a line break ends an answer: it runs on to --max-new-tokens, as in the released code.",
    )
    paper_grid: bool = option(False, "20 lengths and the first 3 needles, as Wu et al. (with 10 depths).")
    seed: int = option(0, "Seed of the haystack windows and of the order of the runs.")

    def __post_init__(self) -> None:
        from headwise.prompts.prompt import chat_arguments

        set_option(self, "lengths", whole_numbers("lengths", self.lengths))
        for name in ("needles", "haystack"):
            set_option(self, name, path_or(getattr(self, name)))
        check_least(1, depths=self.depths, windows=self.windows, max_new_tokens=self.max_new_tokens)
        check_seed(self.seed)
        chat_arguments(self.chat_template_args)
        if not 0 <= self.min_recall < 1:
            raise HeadwiseError(f"min_recall must lie in [0, 1); got {self.min_recall:g}")
        if self.paper_grid and self.lengths is not None:
            raise HeadwiseError("the paper's grid has lengths of its own; give either lengths or the paper's grid")

    def task(self, model: Model) -> Task:
        """The prompts for a model. Raises `PromptError` for needles, texts or a template that cannot be used."""
        from headwise.prompts.grid import even_depths, paper_lengths
        from headwise.prompts.prompt import chat_arguments

        lengths: Any = paper_lengths(model.positions) if self.paper_grid else self.lengths
        task = needle_task(
            model, split="detect", lengths=lengths, depths=even_depths(self.depths), windows=self.windows, needles=self.needles,
            haystack=self.haystack, template=self.template, chat=self.chat, chat_args=chat_arguments(self.chat_template_args),
            seed=self.seed,
        )  # fmt: skip
        return task.first_needles(PAPER_NEEDLES) if self.paper_grid else task

    def stop(self, model: Model, task: Task) -> frozenset[int]:
        """Ids that end an answer; none with `ignore_eos`.

        Args:
            model: With its tokenizer.
            task: Whose prompts say whether an answer begins inside thoughts.
        """
        from headwise.runtime.answer import stop_ids

        return frozenset() if self.ignore_eos else stop_ids(model, task.composer.builder.opens_thought)

    def none_solved(self, cells: Sequence[dict[str, Any]]) -> NoSuccessfulRunError:
        """The error that says why no run counts, and what may help."""
        silent = sum(not cell["answer"].strip() for cell in cells)
        best = f"best unigram recall {max(cell['recall'] for cell in cells):.2f}, min_recall {self.min_recall:g}"
        helps = ["shorter --lengths", *([] if self.chat else ["--chat for a chat model"]), "other --needles"]
        start = f"no successful run: the model answered none of {len(cells)} needle questions"
        thinking = sum(bool(cell.get("thoughts_never_ended")) for cell in cells)
        if 2 * thinking > len(cells):
            start += f"; in {thinking} the model was still thinking after {self.max_new_tokens} tokens"
            off = (
                ""
                if (self.chat_template_args or not self.chat)
                else ", or --chat-template-args if its template can switch thinking off"
            )
            helps.insert(0, f"a larger --max-new-tokens{off}")
        elif 2 * silent > len(cells) and not self.ignore_eos:
            start += f"; in {silent} the model ended at once (end of text or a line break)"
            helps.insert(0, "--ignore-eos")
        return NoSuccessfulRunError(f"{start} ({best}), so no head can be scored; try {', '.join(helps[:-1])} or {helps[-1]}")


def needle_task(
    model: Model,
    *,
    split: str,
    lengths: tuple[int, ...] | None,
    depths: tuple[float, ...],
    windows: int = 1,
    needles: str | Path | Sequence[Needle] | None = None,
    haystack: str | Path | Sequence[str] | None = None,
    template: str | None = None,
    chat: bool = False,
    chat_args: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Task:
    """Needles, haystack and grid of a run.

    Args:
        model: With its tokenizer.
        split: Which bundled needles to use if none are given: `detect` or `test`.
        lengths: Context lengths in tokens; None takes three that fit.
        depths: Fractions in [0, 1].
        windows: See `NeedleQuestions`, as for all that follow.
        needles: See `given_needles`.
        haystack: A folder, texts, or None.
        template: Prompt with fields, or None.
        chat: Whether to use the chat template.
        chat_args: Variables for it.
        seed: Of the haystack windows and of the order of the runs.

    Returns:
        The task. Its prompts are made from the first 90 % of the haystack; the rest is left for perplexity and calibration.

    Raises:
        PromptError: Needles, texts or a template that cannot be used.
    """
    from headwise.prompts.encoder import PieceEncoder
    from headwise.prompts.grid import GridOptions, Task, default_lengths
    from headwise.prompts.haystack import Haystack
    from headwise.prompts.needles import NeedleComposer

    chosen = given_needles(needles, split)
    encoder = PieceEncoder(model.tokenizer)
    composer = NeedleComposer(encoder, template, chat, chat_args)
    grid = GridOptions(lengths or default_lengths(model.positions), depths, windows, PROMPT_PART, seed)
    return Task(chosen, Haystack(haystack_texts(haystack), encoder), composer, grid)


def given_needles(needles: str | Path | Sequence[Needle] | None, split: str) -> Sequence[Needle]:
    """The needles of a run.

    Args:
        needles: A file, the name of a bundled set (a file of that name goes first), `Needle`s, or None.
        split: The bundled set for None.

    Raises:
        PromptError: The file cannot be used, see `read_needles`.
    """
    from headwise.prompts.needles import NEEDLE_SETS, bundled_needles, read_needles

    if needles is None or not isinstance(needles, str | Path):
        return bundled_needles(split) if needles is None else needles
    return bundled_needles(str(needles)) if str(needles) in NEEDLE_SETS and not Path(needles).exists() else read_needles(needles)


def haystack_texts(haystack: str | Path | Sequence[str] | None) -> Sequence[str]:
    """Texts of a folder, the texts themselves, or the three bundled books (None)."""
    from headwise.prompts.haystack import bundled_texts, read_texts

    if haystack is None:
        return bundled_texts()
    return read_texts(haystack) if isinstance(haystack, str | Path) else haystack


def run_groups(
    model: Model,
    task: Task,
    run: Callable[[Group], Cell],
    tell: Callable[[Sequence[Cell]], str],
    directory: RunDirectory | None,
    report: Report,
    enough: Callable[[Sequence[Cell]], bool] | None = None,
) -> list[Cell]:
    """Run every group of the task, in order, but those whose result the directory holds already.

    Args:
        model: Decides how long prompts may be.
        task: What to ask.
        run: Called with one group.
        tell: The remark of a report, from the cells so far; progress counts tokens of context.
        directory: Where finished groups are kept; None keeps nothing.
        report: `report(done, total, remark)`.
        enough: Whether the cells so far are enough to stop early.

    Returns:
        One cell per group: what `run` returned.

    Raises:
        PromptError: Prompts that cannot be made, before any work is done.
    """
    from headwise.prompts.grid import make_group, plan_groups

    specs = plan_groups(task, model.positions)
    cells: list[Cell] = []
    done, total = 0, sum(spec.length for spec in specs)
    for spec in specs:
        cell = directory.load(spec.key) if directory else None
        if cell is None:
            cell = run(make_group(spec, task, model.positions))
            if directory:
                directory.save(spec.key, *cell)
        cells.append(cell)
        done += spec.length
        report(done, total, tell(cells))
        if enough and enough(cells):
            break
    return cells


def joined(cells: Sequence[Cell], name: str, axis: int = 0) -> NDArray[Any]:
    """The arrays of one name of all groups, one behind the other.

    Args:
        cells: As `run_groups` gives them, at least one.
        name: Under which every cell holds an array.
        axis: That of the runs.
    """
    import numpy as np

    return np.concatenate([arrays[name] for arrays, _ in cells], axis=axis)


def all_info(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The descriptions of all runs, in order."""
    return [info for _, infos in cells for info in infos]


def tell_solved(cells: Sequence[Cell]) -> str:
    """How many runs the model has solved so far."""
    info = all_info(cells)
    return f"{sum(one['success'] for one in info)} of {len(info)} runs solved"


def describe_questions(
    model: Model, task: Task, options: NeedleQuestions, score: str, version: int, stated: Sequence[str]
) -> dict[str, Any]:
    """All that decides the scores of a detector that asks needle questions, as plain data. stated: names of the options that do."""
    from headwise.models.model import describe_model
    from headwise.prompts.grid import describe_task

    own = {"score": score, "score_version": version, "options": {name: getattr(options, name) for name in stated}}
    return own | describe_task(task) | describe_model(model)


class Asked(NamedTuple):
    """One question and its answer.

    Attributes:
        number: Of the prompt in its group.
        prompt: What was asked.
        answer: What the model said, thoughts included.
        start: First token of the answer behind its thoughts: what is said in thoughts does not count.
        cell: What is told of the run; `success` says whether it counts.
    """

    number: int
    prompt: Prompt
    answer: TracedAnswer
    start: int
    cell: dict[str, Any]


def ask(
    model: Model, group: Group, options: NeedleQuestions, stop: frozenset[int], seen: Observation, info: Sequence[dict[str, Any]],
    spans: Sequence[str] = (),
) -> Iterator[Asked]:  # fmt: skip
    """Ask every question of a group inside `with observe(model) as seen`, which holds the statistics of each answer while its run is had.

    Args:
        model: With its tokenizer.
        group: The questions.
        options: When an answer ends and when it counts.
        stop: Ids that end an answer.
        seen: What the block observes.
        info: One mapping per prompt, as `group.info`; it gets what is found of the run.
        spans: Names of the prompt's spans whose mass is observed.
    """
    from headwise.prompts.encoder import answer_start
    from headwise.runtime.answer import judged_answer, traced_answer
    from headwise.runtime.runner import leaves

    for leaf in leaves(model.hf, [prompt.ids for prompt in group.prompts]):
        prompt, cell = group.prompts[leaf.index], info[leaf.index]
        if spans:
            seen.spans = tuple(prompt.span(name) for name in spans)
        answer = traced_answer(model.hf, seen, leaf, prompt.gold, stop, options.max_new_tokens, model.is_hybrid)
        cell |= judged_answer(model, answer.ids, stop, group.needle.answer)
        cell["success"] = cell["recall"] > options.min_recall
        yield Asked(leaf.index, prompt, answer, answer_start(stop, answer.ids) or 0, cell)


class Solved(NamedTuple):
    """What is kept of all groups.

    Attributes:
        tables: Name -> [run, layer, head] float64 of the solved runs.
        info: What is told of each solved run beside its values.
        facts: `runs` (their number), `solved`, `cells` (all runs) and `shared_places` (see `headwise.prompts.grid`), for the provenance.
    """

    tables: dict[str, NDArray[Any]]
    info: tuple[dict[str, Any], ...]
    facts: dict[str, Any]


def solved_runs(cells: Sequence[Cell], names: Sequence[str], options: NeedleQuestions) -> Solved:
    """The solved runs of all groups. names: of the tables in each cell. Raises `NoSuccessfulRunError` if there are none."""
    import numpy as np

    from headwise.prompts.grid import shared_places

    info = all_info(cells)
    solved = np.array([one["success"] for one in info])
    if not solved.any():
        raise options.none_solved(info)
    tables = {name: joined(cells, name)[solved].astype(np.float64) for name in names}
    told = tuple({name: one[name] for name in ("length", "depth", "needle", "window")} for one in info if one["success"])
    facts = {"runs": len(info), "solved": int(solved.sum()), "shared_places": shared_places(info), "cells": info}
    return Solved(tables, told, facts)
