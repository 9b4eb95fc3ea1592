"""Requests and answers as clients of Cohere, Jina and text-embeddings-inference know them. The first two share one shape.

A score is an attention difference, no probability, whatever shape it comes in: see `SCORES`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, field_validator, model_validator

from headwise.prompts.passages import Passage
from headwise.serve.limits import RefusalError, Settings

SCORES = (
    "A score is the attention that the chosen heads pay to a passage from the query, minus what a query without content gets. Higher is more "
    "relevant. It is no probability, may be negative, and can be compared only inside one answer. Passages that do not fit into the "
    "model together are read in windows and nothing is cut; their scores are then places in a tournament of windows."
)

Text = str | Passage
DOCUMENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "object",
            "properties": {"text": {"type": "string"}, "title": {"type": "string"}},
            "required": ["text"],
        },
    ]
}


class Document(BaseModel):
    """A passage: a text, or an object with `text` and, if wanted, `title`. Other fields are not read."""

    model_config = ConfigDict(strict=True)
    text: str
    title: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"text": value}
        if isinstance(value, dict) and "text" in value:
            return value
        raise ValueError("a document is a text or an object with a text")

    def passage(self, with_title: bool = True) -> Text:
        """What the ranker reads."""
        return Passage(self.text, self.title) if self.title and with_title else self.text


class DocumentsRequest(BaseModel):
    """Cohere (v1, v2) and Jina. What is not listed here is ignored: nothing is cut, so lengths per document have no meaning."""

    model_config = ConfigDict(strict=True)
    query: str
    documents: list[Annotated[Document, WithJsonSchema(DOCUMENT_SCHEMA)]] = Field(min_length=1)
    model: str | None = Field(None, description="Not read: the answer names the model that is served.")
    top_n: int | None = Field(None, ge=1, description="How many of the best to return; null: all.")
    return_documents: bool | None = Field(None, description="Also return each text.")
    rank_fields: list[str] | None = Field(None, description="Which fields of the documents to read: text, or text and title.")

    @field_validator("rank_fields")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and ("text" not in value or not set(value) <= {"text", "title"}):
            raise ValueError("only text, or text and title, can be read")
        return value

    @property
    def passages(self) -> tuple[Text, ...]:
        """In the order given."""
        titles = self.rank_fields is None or "title" in self.rank_fields
        return tuple(document.passage(titles) for document in self.documents)

    def answer(self, scores: Sequence[float], tokens: int, model: str, version: str) -> dict[str, Any]:
        """The answer, best passage first.

        Args:
            scores: In the order of the passages.
            tokens: What the model needs to read for this request (kept from an earlier one or not).
            model: Name of the model.
            version: Of the interface, "1" or "2".

        Returns:
            JSON data of a `DocumentsAnswer`, of at most `top_n` passages.
        """
        results = []
        for index in best_first(scores)[: self.top_n]:
            row: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
            if self.return_documents:
                row["document"] = self.documents[index].model_dump(exclude_none=True)
            results.append(row)
        meta = {"api_version": {"version": version}, "tokens": {"input_tokens": tokens, "output_tokens": 0}}
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"id": str(uuid.uuid4()), "model": model, "results": results, "meta": meta, "usage": usage}


class TextsRequest(BaseModel):
    """text-embeddings-inference."""

    model_config = ConfigDict(strict=True)
    query: str
    texts: list[str] = Field(min_length=1)
    raw_scores: bool | None = Field(
        None, description="Changes nothing: scores are always raw, a sigmoid would make them look like chances."
    )
    return_text: bool | None = Field(None, description="Also return each text.")
    truncate: bool | None = Field(
        None, description="Changes nothing: texts are never cut; what does not fit together is read in windows."
    )

    @property
    def passages(self) -> tuple[Text, ...]:
        """In the order given."""
        return tuple(self.texts)

    def answer(self, scores: Sequence[float], tokens: int, model: str, version: str) -> list[dict[str, Any]]:
        """The answer, best passage first, as a plain list of `Rank`.

        Args:
            scores: In the order of the texts.
            tokens: Not told in this shape.
            model: Not told in this shape.
            version: Not told in this shape.

        Returns:
            JSON data of all texts.
        """
        return [
            {"index": index, "score": scores[index]} | ({"text": self.texts[index]} if self.return_text else {})
            for index in best_first(scores)
        ]


RerankRequest = DocumentsRequest | TextsRequest


class Result(BaseModel):
    """One passage in the order of relevance; `index` is its place in the request, from 0."""

    index: int
    relevance_score: float = Field(description=SCORES)
    document: dict[str, str] | None = None


class DocumentsAnswer(BaseModel):
    """Answer to `documents`."""

    id: str
    model: str
    results: list[Result]
    meta: dict[str, Any]
    usage: dict[str, int]


class Rank(BaseModel):
    """One text in the order of relevance; `index` is its place in the request, from 0."""

    index: int
    score: float = Field(description=SCORES)
    text: str | None = None


class Problem(BaseModel):
    """What was wrong: `type` is a stable word, `message` one line."""

    type: str
    message: str


class ErrorAnswer(BaseModel):
    """Every answer that is not 200, `/health` aside."""

    error: Problem


def best_first(scores: Sequence[float]) -> list[int]:
    """Indices from the highest score to the lowest; equal scores in the order given, as `Ranker.rank` has them."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def read_request(data: Any, settings: Settings) -> RerankRequest:
    """A checked request.

    Args:
        data: The JSON value of a body.
        settings: Limits of the service.

    Returns:
        The shape that `data` has: `documents` or `texts`.

    Raises:
        RefusalError: With 422 for what has neither shape, with 413 for what is over a limit.
    """
    if not isinstance(data, dict) or ("documents" in data) == ("texts" in data):
        raise RefusalError(422, "invalid_request", "send an object with query and either documents (Cohere, Jina) or texts (TEI)")
    # Counted before the passages are looked at one by one.
    given = data.get("documents", data.get("texts"))
    if isinstance(given, list) and len(given) > settings.max_passages:
        raise RefusalError(
            413, "too_many_passages", f"{len(given)} passages; at most {settings.max_passages} are taken at a time"
        )
    kind: type[DocumentsRequest] | type[TextsRequest] = DocumentsRequest if "documents" in data else TextsRequest
    try:
        request = kind.model_validate(data)
    except ValidationError as error:
        raise RefusalError(422, "invalid_request", _reasons(error)) from error
    _check_texts(request, settings)
    return request


def _check_texts(request: RerankRequest, settings: Settings) -> None:
    _check_text("query", request.query, "", settings.max_query_chars)
    name = "documents" if isinstance(request, DocumentsRequest) else "texts"
    for index, passage in enumerate(request.passages):
        text, title = (passage, "") if isinstance(passage, str) else passage
        _check_text(f"{name}.{index}", text, title, settings.max_passage_chars)


def _check_text(place: str, text: str, title: str, limit: int) -> None:
    size = len(text) + len(title)
    if size > limit:
        raise RefusalError(413, "text_too_long", f"{place}: {size} characters; at most {limit} are taken")
    if not text.strip():
        raise RefusalError(422, "invalid_request", f"{place}: empty; leave it out")
    try:
        (title + text).encode()
    except UnicodeEncodeError as error:  # JSON can spell it, but neither tokenizers nor our answer can hold it
        raise RefusalError(422, "invalid_request", f"{place}: half a surrogate pair at character {error.start}") from error


def _reasons(error: ValidationError) -> str:
    """The first reasons, without the text that was given: it may be long, and it is nobody else's business."""
    rows = error.errors(include_input=False, include_url=False, include_context=False)
    lines = [f"{'.'.join(map(str, row['loc'])) or 'request'}: {row['msg'].removeprefix('Value error, ')}" for row in rows[:3]]
    return "; ".join(lines) + (f"; and {len(rows) - 3} more" if len(rows) > 3 else "")
