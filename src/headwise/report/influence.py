"""The page of a scored corpus: scores per domain, the length confound, cuts and shares, other filters, and documents to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwise.report.influence_numbers import QUANTILES, densities, excerpt, mean_tokens, named, number, points, quantile_rows
from headwise.report.numbers import count, public_name
from headwise.report.page import charts, parts
from headwise.report.page.shell import Html, document, join, tag, write_document

KINDS = {"most": "Highest scores", "boundary": "Next to the cut", "least": "Lowest scores"}
FILTERS = {"score": "score", "perplexity": "lowest loss", "longest": "longest", "random": "random"}
Data = Mapping[str, Any]


def influence_page(data: Data, path: Path) -> Path:
    """Write the page.

    Args:
        data: what `corpus.summary.summarise` gives; its named documents may have a `text`.
        path: of the page.

    Returns:
        `path`.

    Raises:
        HeadwiseError: the file cannot be written.
    """
    return write_document(path, document("Influence of retrieval heads", influence_body(data)))


def influence_body(data: Data) -> Html:
    """Everything between the page's top and its end."""
    return join(
        _top(data),
        parts.section("Scores", _scores(data), lead=SCORES),
        parts.section("Chosen documents", _cuts(data), lead=_choice_line(data["options"])),
        parts.section("Length", _length(data), lead=LENGTH),
        parts.section("Compared with other filters", _overlap(data), lead=OVERLAP),
        parts.section("Documents to read", *_documents(data), lead=DOCUMENTS),
        parts.section("Not ranked", _not_ranked(data), lead=NOT_RANKED),
        parts.section("How it was scored", _settings(data)),
    )


SCORES = (
    "Relative loss increase per document when the retrieval heads are ablated. Compare scores within one domain only, because losses differ "
    "between domains."
)
LENGTH = (
    "Long documents have more earlier text to draw on, so scores tend to rise with length. Within strata of length: the correlation that is left "
    "when every document is ranked among documents of about its own length (ten strata)."
)
OVERLAP = (
    "Share of the chosen documents that another rule would choose as well, if it chose as many. An unrelated rule agrees by chance on the same "
    "share that was chosen of all documents."
)
DOCUMENTS = (
    "Read some documents before you trust a cut. Repetitive text scores high as well: tables, logs, copied licences, near-duplicates within a "
    "document. Remove duplicates first."
)
NOT_RANKED = (
    "Flagged documents have a score that says little (they are too short, or their loss is near zero); the others have no score."
)


def _top(data: Data) -> Html:
    every = data["thresholds"]["all"]
    scorer = data["description"].get("scorer", {})
    heads = scorer.get("heads", ())
    model = scorer.get("model", "a model without a name")
    line = f"{public_name(model.get('model') if isinstance(model, Mapping) else model)} with {count(len(heads), 'head')} ablated"
    facts = {
        "documents": f"{every['documents']:,}",
        "ranked": f"{every['ranked']:,}",
        "chosen": f"{every['chosen']:,}",
        "of all tokens": _percent(every["token_share"]),
        "domains": len(data["thresholds"]["domains"]),
    }
    return parts.header("Influence of retrieval heads", line, f"Configuration {data['config']}", facts=facts)


def _scores(data: Data) -> Html:
    columns = {"domain": "Domain", "score": "Score", "share": "Share of documents"}
    label = "How the scores of each domain's documents are distributed"
    chart = charts.lines(
        densities(_largest(data)), columns, x="score", y="share", series="domain", label=label, name="influence-scores"
    )
    heads = ["Domain", "Documents", *(f"{q:.0%}" for q in QUANTILES)]
    rows = quantile_rows(data["samples"])
    listed = parts.table(heads, rows, numbers=range(1, len(heads)), caption="Quantiles of the score, of a random sample")
    caption = "The outermost points include all scores beyond them." + _some(data)
    return join(parts.figure(chart, caption), listed)


def _cuts(data: Data) -> Html:
    heads = ["Domain", "Documents", "Ranked", "Cut", "Chosen", "Of documents", "Of tokens", "Mean tokens", "Of chosen"]
    rows, strata = [], []
    for row in data["thresholds"]["domains"]:
        means = mean_tokens(data["samples"], row["domain"])
        cut = number(row.get("threshold")) if "strata" not in row else f"{len(row['strata'])} strata"
        rows.append([named(row["domain"]), f"{row['documents']:,}", f"{row['ranked']:,}", cut, f"{row['chosen']:,}",
                     _percent(row["document_share"]), _percent(row["token_share"]), *(number(mean, ",.0f") for mean in means)])  # fmt: skip
        strata += [[named(row["domain"]), part["up_to_tokens"] or "any", f"{part['ranked']:,}", number(part["threshold"]),
                    f"{part['chosen']:,}", _percent(part["token_share"])] for part in row.get("strata", ())]  # fmt: skip
    shown = parts.table(heads, rows, numbers=range(1, len(heads)))
    note = parts.note("Shares are of the ranked documents and of their tokens. Mean tokens are those of the sample.")
    if not strata:
        return join(shown, note)
    names = ["Domain", "Up to tokens", "Ranked", "Cut", "Chosen", "Of tokens"]
    return join(shown, note, parts.details("Cuts of all strata", parts.table(names, strata, numbers=range(1, 6))))


def _choice_line(options: Data) -> str:
    unit = "documents" if options["by"] == "docs" else "tokens"
    line = f"{options['share']:.0%} of each domain's {unit}, by {FILTERS[options['rank']]}"
    if options["strata"] > 1:
        line += f", in {options['strata']} strata of length"
    if options["min_loss"]:
        line += f", of documents with a loss of at least {options['min_loss']:g} nats"
    return line + "."


def _length(data: Data) -> Html:
    columns = {"domain": "Domain", "tokens": "Tokens", "score": "Score", "loss": "Loss", "chosen": "Chosen"}
    chart = charts.scatter(
        points(_largest(data)), columns, x="tokens", y="score", series="domain", log_x=True,
        label="Score against length of sampled documents", name="influence-length",
    )  # fmt: skip
    heads = ["Domain", "Documents", "Score and length", "Within strata of length", "Score and loss"]
    rows = [
        [named(name), f"{found['documents']:,}", *(number(found[key], "+.3f") for key in ("before", "after", "loss"))]
        for name, found in data["correlations"].items()
    ]
    listed = parts.table(heads, rows, numbers=range(1, 5), caption="Spearman's rank correlation, of the sample")
    return join(parts.figure(chart, "Sampled documents." + _some(data)), listed)


def _overlap(data: Data) -> Html:
    rules = list(data["overlap"])
    heads = ["Domain", "Chosen", *(FILTERS[rule] for rule in rules)]
    names = [row["domain"] for row in data["thresholds"]["domains"]]
    rows = [
        [
            named(name),
            f"{data['overlap'][rules[0]][name]['chosen']:,}",
            *(_percent(data["overlap"][r][name]["share"]) for r in rules),
        ]
        for name in names
    ]
    return parts.table(heads, rows, numbers=range(1, len(heads)))


def _documents(data: Data) -> list[Html]:
    found: list[Html] = []
    for domain in _largest(data):
        kinds = data["named"].get(domain, {})
        for kind, rows in sorted(kinds.items(), key=lambda item: list(KINDS).index(item[0])):
            listed = [
                join(_document_line(row), tag("blockquote", tag("p", excerpt(row.get("text")), class_="marked"))) for row in rows
            ]
            found.append(parts.details(f"{named(domain)}: {KINDS[kind].lower()}", *listed, open=not found))
    return [*found, parts.note(_some(data).strip())] if found else [parts.note("No documents were requested.")]


def _largest(data: Data) -> dict[str, Any]:
    """The samples of the domains with the most ranked documents, as many as there are colours, in the order of their names."""
    rows = sorted(data["thresholds"]["domains"], key=lambda row: -row["ranked"])
    kept = sorted(row["domain"] for row in rows[: len(charts.SERIES)] if row["domain"] in data["samples"])
    return {name: data["samples"][name] for name in kept}


def _some(data: Data) -> str:
    hidden = len(data["samples"]) - len(charts.SERIES)
    return f" The {len(charts.SERIES)} largest domains are shown." if hidden > 0 else ""


def _document_line(row: Data) -> Html:
    told = f"score {row['score']:.4f}, loss {row['loss_base']:.3f} → {row['loss_ref']:.3f}, {row['n_tokens']:,.0f} tokens"
    return tag("p", tag("strong", told), f" · {public_name(row['file'])}, row {row['row']}")


def _not_ranked(data: Data) -> Html:
    rows = [[kind, reason, f"{count:,}"] for kind, reasons in data["reasons"].items() for reason, count in reasons.items()]
    if not rows:
        rows = [["–", "every document is ranked", "0"]]
    note = parts.note(f"{data['truncated']:,} documents were scored in part, because they have more windows than the limit.")
    return join(parts.table(["", "Reason", "Documents"], rows, numbers=(2,)), note)


def _settings(data: Data) -> Html:
    rows = [[name, value] for name, value in _flat(data["description"])]
    return parts.details(
        "All settings", parts.table(["Setting", "Value"], [["configuration", data["config"]], *rows], names=False)
    )


def _flat(held: object, name: str = "") -> list[tuple[str, str]]:
    """Settings inside settings, one line each."""
    if isinstance(held, Mapping):
        return [line for key in sorted(held) for line in _flat(held[key], f"{name} {key}".strip().replace("_", " "))]
    return [
        (
            name,
            ", ".join(map(public_name, held)) if isinstance(held, list | tuple) else "–" if held is None else public_name(held),
        )
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
