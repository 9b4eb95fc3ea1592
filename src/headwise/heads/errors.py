"""Errors that a user can cause. Each message is one line: what was given, what is allowed, what to do next.

HeadwiseError (ValueError)
├── UnsupportedModelError   the model's family cannot be attached to
├── PromptError             a prompt or one of its spans cannot be made
│   └── TooLongError        it needs more positions than the model has
├── HeadFileError           a head file is missing, broken or for another model
└── NoSuccessfulRunError    the model solved no run, so no head can be scored
    └── NothingToRepair     the model does nothing that could be repaired; for the command line no failure
MissingExtraError (ImportError)   an optional dependency is needed
"""

from __future__ import annotations


class HeadwiseError(ValueError):
    """Input that headwise refuses."""


class UnsupportedModelError(HeadwiseError):
    """The model's family cannot be attached to."""


class PromptError(HeadwiseError):
    """A prompt or one of its spans cannot be made."""


class TooLongError(PromptError):
    """A prompt needs more positions than the model has."""


class HeadFileError(HeadwiseError):
    """A head file is missing, broken, or belongs to another model."""


class NoSuccessfulRunError(HeadwiseError):
    """The model solved no run, so no head can be scored."""


class NothingToRepair(NoSuccessfulRunError):  # a finding: the command line says it and ends with status 0
    """The model does nothing that could be repaired: no answer flips, or all do."""


class MissingExtraError(ImportError):
    """An optional dependency is needed.

    Args:
        package: What is missing.
        extra: The extra of headwise that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; install it with: pip install 'headwise[{extra}]'")
