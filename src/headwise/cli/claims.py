"""`headwise claims`: the ledger of the papers' claims, and what was measured of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli import options as o
from headwise.cli.claims_picture import EXPERIMENT, check_picture, matrices, write_picture
from headwise.cli.claims_run import run
from headwise.heads.errors import HeadwiseError

if TYPE_CHECKING:
    from headwise.claims.results import Result, Row

app = typer.Typer(name="claims", help="Claims of the papers: what is claimed, what was measured, what held.", no_args_is_help=True)
app.command("run")(run)

Cards = Annotated[list[str] | None, typer.Option("--card", help="Claims of this method card; may be given several times.")]
Keys = Annotated[list[str] | None, typer.Option("--claim", help="This claim, by its key; may be given several times.")]
# A parameter of this kind is not called `model`: commands that have one load it, and are given the options of loading.
Models = Annotated[list[str] | None, typer.Option("--model", help="Results of this model alone; may be given several times.")]
Verdict = Annotated[str | None, typer.Option(help="Claims with this verdict: held, 'not held', 'not testable', unmeasured or old.")]
Folders = Annotated[
    list[Path] | None,
    typer.Argument(help="Folders that headwise claims run wrote; shipped: the results that come with headwise.", show_default="shipped"),
]
SHIPPED = "shipped"
COST = Annotated[str | None, typer.Option(help="Claims of this class of cost on smollm2: seconds, minutes or hours.")]


@app.command("list")
def list_claims(
    folders: Folders = None,
    card: Cards = None,
    of: Models = None,
    cost: COST = None,
    verdict: Verdict = None,
    json: o.Json = False,
) -> None:
    """List the claims, with the verdicts that were measured."""
    from headwise.claims import ledger

    shown, models = _rows(_results(folders, of), card, None, verdict)
    if cost is not None:
        _check_cost(cost)
        fitting = {claim.key for one in ledger.experiments() if ledger.cost(one, "real") == cost for claim in one.claims}
        shown = [row for row in shown if row.claim.key in fitting]
    if json:
        o.print_json({"claims": [row.to_json() for row in shown]})
        return
    from headwise.report.claims_tables import claims_list
    from headwise.report.console import print_all

    number = len({row.claim.key for row in shown})
    print_all(claims_list(_told(shown), models), f"{number} claims of {len(ledger.claims())}", *_without_lab())


@app.command("show")
def show(
    folders: Folders = None,
    card: Cards = None,
    claim: Keys = None,
    of: Models = None,
    verdict: Verdict = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with all that is shown.", show_default=False)] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw which detectors find the same heads (.png or .svg), of a model that transfer was measured on.", show_default=False),
    ] = None,
    docs: Annotated[str | None, typer.Option(help="Folder or address of the documentation, for links to the pages of methods.")] = None,
    json: o.Json = False,
) -> None:
    """Show what was measured: effect and interval beside the control and the paper's number, p corrected over the family, verdict.

    Several folders, or one with results of several models, are compared.
    """
    if html is not None:
        o.check_file(html, "--html")
    if picture is not None:
        check_picture(picture)
    results = _results(folders, of)
    shown, models = _rows(results, card, claim, verdict)
    told = _told(shown)
    if picture is not None:
        write_picture(matrices(results), picture)
    if html is not None:
        from headwise.report.claims_page import write_page

        about = any(row.experiment == EXPERIMENT for row in shown)
        write_page(told, models, html, docs, matrices(results) if about else None)
    if json:
        written = {name: None if path is None else str(path) for name, path in (("page", html), ("picture", picture))}
        o.print_json({"models": models, "claims": told, **written})
        return
    from headwise.report.claims_tables import claim_lines, claims_table, counts_line, reasons
    from headwise.report.console import print_all

    lines = [*([] if html is None else [f"page       {html}"]), *o.picture_line(None if picture is None else str(picture))]
    if claim:
        print_all(*(line for row in told for line in claim_lines(row)), *lines)
        return
    for name in models:
        own = [row for row in told if row["model"] == name]
        print_all(claims_table(name, [row for row in own if row["verdict"]]), *reasons(own), counts_line(own), "")
    lines += _without_lab()
    if not models:
        lines.insert(0, f"{counts_line(told)}; headwise claims run --plan says what can be measured")
    print_all(*lines)


@app.command("export")
def export(
    folders: Folders = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="A file that ends in .json or .csv.")] = ...,  # type: ignore[assignment]
    card: Cards = None,
    of: Models = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
) -> None:
    """Write one row per claim and model as JSON or CSV."""
    from headwise.claims.export import to_csv, to_json

    kinds = {".json": to_json, ".csv": to_csv}
    if output.suffix not in kinds:
        raise HeadwiseError(f"{output} must end in .json or .csv")
    o.check_file(output, "--output", overwrite)
    shown, models = _rows(_results(folders, of), card, None, None)
    from headwise.heads.files import write_atomically

    write_atomically(output, kinds[output.suffix](shown).encode())
    if json:
        o.print_json({"result": str(output), "rows": len(shown), "models": models})
        return
    typer.echo(f"result     {output} ({len(shown)} rows)")


def _rows(
    results: list[Result], cards: list[str] | None, keys: list[str] | None, verdict: str | None
) -> tuple[list[Row], list[str]]:
    """Rows that were asked for, and the models whose results there are."""
    from headwise.claims import ledger
    from headwise.claims.claim import VERDICTS
    from headwise.claims.results import rows

    for card in cards or ():
        ledger.check_card(card)
    for key in keys or ():
        ledger.experiment_of(key)
    words = (*VERDICTS, "unmeasured", "old")
    if verdict is not None and verdict not in words:
        raise HeadwiseError(f"unknown verdict {verdict!r}; use {', '.join(words)}")
    shown = rows(results, cards or (), keys or ())
    if verdict is not None:
        shown = [row for row in shown if (row.told or "unmeasured") == verdict]
    return shown, list(dict.fromkeys(str(one.model["name"]) for one in results))


def _results(folders: list[Path] | None, models: list[str] | None) -> list[Result]:
    from headwise.claims.results import read_results, shipped, shipped_results
    from headwise.models.names import label

    results = read_results([shipped() if str(folder) == SHIPPED else folder for folder in folders]) if folders else shipped_results()
    if not models:
        return results
    known = {str(one.model["name"]) for one in results}
    for name in models:
        if label(name) not in known:
            raise HeadwiseError(f"there is no result of the model {name!r}; there are results of {', '.join(sorted(known))}")
    return [one for one in results if one.model["name"] in {label(name) for name in models}]


def _without_lab() -> list[str]:
    """What is not in the ledger where headwise-lab is not installed."""
    from importlib.util import find_spec

    from headwise.models.registry import LAB_COMMAND

    return [] if find_spec("headwise_lab") else [f"claims about the micro-world come with headwise-lab ({LAB_COMMAND})"]


def _check_cost(cost: str) -> None:
    from headwise.claims.experiment import COSTS

    if cost not in COSTS:
        raise HeadwiseError(f"unknown cost {cost!r}; use {', '.join(COSTS)}")


def _told(shown: list[Row]) -> list[dict[str, Any]]:
    return [row.to_json() for row in shown]
