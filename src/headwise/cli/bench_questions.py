"""What `headwise bench cache` asks: tasks by name, a file in RULER's layout, or a user's own questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headwise.cli import options as o
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.evaluation.contexts import Context
    from headwise.models.model import Model

TASKS, LENGTH, ITEMS, QUESTIONS, SPLIT, ANSWER = "needle,key_value", "512", 20, 1, "test", 32


class Asked(NamedTuple):
    """The options that decide what is asked; None where the user gave nothing."""

    tasks: str | None
    lengths: str | None
    items: int | None
    questions: int | None
    split: str | None
    seed: int
    ruler: Path | None
    data: Path | None
    chat: bool
    chat_template_args: str | None
    max_new_tokens: int | None

    def check(self) -> None:
        """Refuse options that do not go together: what is not used would look as if it had been measured."""
        if self.ruler and self.data:
            raise HeadwiseError("give either --ruler or --data, not both")
        source = "--ruler" if self.ruler else "--data" if self.data else None
        for name in ("tasks", "lengths", "questions", "split"):
            if source and getattr(self, name) is not None:
                raise HeadwiseError(f"{source} has its own texts and questions, so --{name} has no meaning with it; leave it out")
        if not source and self.chat:
            raise HeadwiseError("--chat goes with --ruler or --data; tasks have their own wording")
        if self.chat_template_args is not None and not self.chat:
            raise HeadwiseError("--chat-template-args goes with --chat")
        _ = self.chat_args  # refuses what is no JSON object
        if not self.data and self.max_new_tokens is not None:
            raise HeadwiseError("--max-new-tokens goes with --data; tasks and RULER's files set the length of their answers")
        for name in ("items", "max_new_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise HeadwiseError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(self, name)}")
        if self.seed < 0:
            raise HeadwiseError(f"--seed must be 0 or more; got {self.seed}")

    @property
    def chat_args(self) -> dict[str, Any]:
        """Variables for the chat template."""
        from headwise.prompts.prompt import chat_arguments

        return chat_arguments(self.chat_template_args)

    def contexts(self, loaded: Model) -> list[Context]:
        """The contexts and questions."""
        from headwise.evaluation.contexts import data_contexts, ruler_contexts

        if self.ruler:
            from headwise.prompts.ruler import read_ruler

            return ruler_contexts(loaded, read_ruler(self.ruler)[: self.items or ITEMS], self.chat, self.chat_args)
        if self.data:
            from headwise.prompts.questions import read_questions

            asked = read_questions(self.data)
            return data_contexts(loaded, asked, self.data.name, self.max_new_tokens or ANSWER, self.chat, self.chat_args)[
                : self.items
            ]
        return self._of_tasks(loaded)

    def _of_tasks(self, loaded: Model) -> list[Context]:
        from headwise.cli.options import method_named
        from headwise.evaluation.contexts import CacheTask

        names = list(dict.fromkeys(name.strip() for name in (self.tasks or TASKS).split(",")))
        tasks: dict[str, CacheTask] = {name: method_named("tasks", name) for name in names}
        lengths = o.numbers(self.lengths or LENGTH, "lengths")
        drawn = (
            ITEMS if self.items is None else self.items, QUESTIONS if self.questions is None else self.questions, self.split or SPLIT, self.seed,
        )  # fmt: skip
        return [context for name, task in tasks.items() for length in lengths for context in task(loaded, name, length, *drawn)]

    def described(self, contexts: int) -> dict[str, object]:
        """As it stands in the result. contexts: how many there are in all."""
        source = self.ruler or self.data
        if source:
            return {
                "source": source.name, "items": contexts, "chat": self.chat, "chat_args": self.chat_args, "max_new_tokens": self.max_new_tokens,
            }  # fmt: skip
        return {
            "source": None, "tasks": self.tasks or TASKS, "lengths": self.lengths or LENGTH, "items": self.items or ITEMS,
            "questions": self.questions or QUESTIONS, "split": self.split or SPLIT,
        }  # fmt: skip
