"""Claims of the paper that need a model and data which are not here."""

from __future__ import annotations

from headwise.claims.experiment import Bench, Measured, NotTestable


def measure(bench: Bench) -> Measured:
    """Nothing: says what it would take.

    Raises:
        NotTestable: Always.
    """
    raise NotTestable(
        "needs an instruction-tuned model of 7 billion parameters or more that answers questions about whole news articles and solves GSM8K with "
        "written steps (a GPU with 24 GB or more), and the authors' ExtractQA questions, which are not published"
    )
