"""RULER's questions (Hsieh et al. 2024) from a parquet file: columns context, question, answer_prefix, answer, max_new_tokens, and task."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from headwise.heads.errors import MissingExtraError, PromptError

COLUMNS = ("context", "question", "answer_prefix", "answer", "max_new_tokens")


class RulerRow(NamedTuple):
    """One question.

    Attributes:
        context: what is read.
        question: what is asked about it.
        answer_prefix: what opens the answer.
        answers: all that are expected (of a `qa` task: any of them will do).
        limit: longest answer in tokens.
        task: name of its task.
    """

    context: str
    question: str
    answer_prefix: str
    answers: tuple[str, ...]
    limit: int
    task: str


def read_ruler(path: Path) -> list[RulerRow]:
    """All rows of a parquet file; without a column `task` the file's name is the task.

    Raises:
        PromptError: the file is missing, broken or has other columns.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    if not path.is_file():
        raise PromptError(f"no such parquet file: {path}")
    try:
        rows = pyarrow.parquet.read_table(str(path)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise PromptError(f"{path} cannot be read as parquet: {error}") from error
    if not rows or (missing := [name for name in COLUMNS if name not in rows[0]]):
        raise PromptError(
            f"{path} is not in RULER's layout: {'no row' if not rows else f'no column {missing[0]}'}; it needs {', '.join(COLUMNS)}"
        )
    return [_row(row, path, number) for number, row in enumerate(rows, 1)]


def string_match(said: str, row: RulerRow) -> float:
    """RULER's measure of an answer: which of the expected texts it contains, case ignored (Hsieh et al. 2024).

    Args:
        said: what the model said.
        row: the question; the task's name decides the rule.

    Returns:
        In [0, 1]: the share of the answers that are contained; for `qa` tasks 1.0 if any is.
    """
    found = [answer.casefold() in said.casefold() for answer in row.answers]
    return float(any(found)) if row.task.startswith("qa") else sum(found) / len(found)


def _row(row: dict[str, object], path: Path, number: int) -> RulerRow:
    texts = [row[name] for name in ("context", "question", "answer_prefix")]
    answers, limit = row["answer"], row["max_new_tokens"]
    answers = [answers] if isinstance(answers, str) else answers
    if not all(isinstance(text, str) for text in texts) or not texts[0]:
        raise PromptError(f"{path}, row {number}: context, question and answer_prefix must be texts")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) and answer for answer in answers):
        raise PromptError(f"{path}, row {number}: answer must be a text or a list of texts")
    if not isinstance(limit, int) or limit < 1:
        raise PromptError(f"{path}, row {number}: max_new_tokens must be at least 1; got {limit!r}")
    context, question, prefix = map(str, texts)
    return RulerRow(context, question, prefix, tuple(answers), limit, str(row.get("task") or path.stem))
