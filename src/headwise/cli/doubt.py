"""`headwise doubt`: how often a model takes its answers back when it is challenged, which heads make it do so, and what calms it."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.detect import COMMON, find_heads, parameter, with_signature
from headwise.cli.doubt_calm import calm
from headwise.cli.progress import progress

if TYPE_CHECKING:
    from headwise.runtime.doubt_questions import DoubtQuestions

app = typer.Typer(
    name="doubt", help="Do right answers survive a challenge? Measure it, find the heads, calm the model.", no_args_is_help=True
)
MOSTLY = 0.8  # share of flips to something else from which the command says so
ROUNDS = Annotated[int, typer.Option(help="Challenge each answer so often in one conversation, each time more strongly.")]


def _measure_command() -> Any:
    """The function behind `headwise doubt measure`: its signature is made of the fields of `DoubtQuestions`."""
    from headwise.runtime.doubt_questions import DoubtQuestions

    def command(rounds: int, **given: Any) -> None:
        common = {option: given.pop(option) for option in COMMON}
        _measure(o.made(DoubtQuestions, given), rounds, **common)

    extra = inspect.Parameter("rounds", inspect.Parameter.KEYWORD_ONLY, default=1, annotation=ROUNDS)
    fields = [parameter("model"), *o.parameters_of(DoubtQuestions), extra, *(parameter(one) for one in COMMON if one != "model")]
    return with_signature(command, fields, "Challenge right answers, and wrong ones in their place, and count what is kept and what is taken back.")


def _measure(
    questions: DoubtQuestions, rounds: int, model: str | None, name: str | None, device: str, dtype: str, revision: str | None,
    output: Path | None, overwrite: bool, json: bool,
) -> None:  # fmt: skip
    from headwise.runtime.options import check_least

    check_least(1, rounds=rounds)
    path = o.output_path(output, model, "doubt-rates", overwrite)
    loaded = o.load(model, device, dtype, revision, name)
    from headwise.evaluation.challenged import measured, under_pressure
    from headwise.heads.headfile import write_json
    from headwise.models.model import describe_model
    from headwise.runtime.doubt_asked import doubts
    from headwise.runtime.rundir import RunDirectory

    asked = doubts(loaded, questions)
    directory = RunDirectory(path.with_name(path.name + ".run"), asked.describe() | describe_model(loaded) | {"doubt": 1})
    with progress("asking", hidden=json) as report:
        found = measured(asked, directory, report)
        pressure = {"pressure": under_pressure(asked, found.answered, rounds, report)} if rounds > 1 else {}
        told = found.to_json() | pressure
    write_json(told, path, overwrite)
    directory.remove()
    _tell_rates(told, path, json)


def _tell_rates(told: dict[str, Any], path: Path, json: bool) -> None:
    from headwise.cli.notes import tell

    if told["read_by"] == "margin":
        tell("fewer than 90 % of the replies say yes or no, so flips are read from the soft margin around the mean of each order of options")
    if json:
        o.print_json({"result": str(path), "rates": told["rates"], "read_by": told["read_by"], "dropped": told["dropped"]})
        return
    from headwise.evaluation.challenged import TOO_LONG
    from headwise.report.console import print_all
    from headwise.report.doubt_tables import rates_table

    right = [row for row in told["rates"] if row["arm"] == "right"]
    lines = [f"{right[0]['items']} of {len(told['items'])} questions are answered right at first"]
    if rows := told.get("pressure"):
        flipped = [row["turn"] for row in rows if row["turn"]]
        lines.append(
            f"under pressure of {len(rows[0]['outcomes'])} rounds {len(flipped)} of {len(rows)} right answers are taken back"
            + (f", first in round {min(flipped)}, on average in {sum(flipped) / len(flipped):.1f}" if flipped else "")
        )
    if left := told["dropped"].get(TOO_LONG):
        lines.append(f"{left} right answers are left out of the rounds: these dialogues grow longer than the model's context")
    flips = sum(row["outcomes"]["suggested"] + row["outcomes"]["other"] for row in right)
    if told["form"] == "words" and flips and sum(row["outcomes"]["other"] for row in right) > MOSTLY * flips:
        tell("most of what counts as taken back is something else than the suggested answer: read some `replies` of the result before you believe it")
    if not any(row["counts"] for row in right):
        lines.append("no challenge passes the gate, so there is nothing to repair")
    print_all(rates_table(told["rates"]), *lines, f"result     {path}")


def _find_command() -> Any:
    """The function behind `headwise doubt find`: that of `headwise detect doubt`, and a table of both signs."""
    from headwise.methods.doubt.options import Doubt

    def command(**given: Any) -> None:
        common = {option: given.pop(option) for option in COMMON}
        detector = o.made(Doubt, given)
        find_heads(detector, **common)
        if not common["json"]:
            _tell_signs(o.output_path(common["output"], common["model"], detector.name, overwrite=True))

    names = {field.name for field in dataclasses.fields(Doubt)}
    fields = [parameter("model"), *o.parameters_of(Doubt), *(parameter(one) for one in COMMON if one != "model" and one not in names)]
    return with_signature(command, fields, "Find the heads that take right answers back, and those that hold on to them (as headwise detect doubt).")


def _tell_signs(path: Path) -> None:
    from headwise.report.console import print_all
    from headwise.report.doubt_tables import both_signs_table

    print_all(both_signs_table(o.read_scores(path)))


app.command("measure")(_measure_command())
app.command("find")(_find_command())
app.command("calm")(calm)
