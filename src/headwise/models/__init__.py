"""`Model`, how it is loaded, the model families, and edits of weights. The only room that touches `transformers.models`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwise.lazy import lazy_names

if TYPE_CHECKING:
    from headwise.models.families import FAMILIES, REFUSED, Family, family_of
    from headwise.models.load import load
    from headwise.models.model import HeadGrid, Model, as_model
    from headwise.models.weights import silence_in_weights

__all__ = [
    "FAMILIES",
    "REFUSED",
    "Family",
    "HeadGrid",
    "Model",
    "as_model",
    "family_of",
    "load",
    "silence_in_weights",
]

_HOMES = {
    "FAMILIES": "headwise.models.families",
    "Family": "headwise.models.families",
    "HeadGrid": "headwise.models.model",
    "Model": "headwise.models.model",
    "REFUSED": "headwise.models.families",
    "as_model": "headwise.models.model",
    "family_of": "headwise.models.families",
    "load": "headwise.models.load",
    "silence_in_weights": "headwise.models.weights",
}

if not TYPE_CHECKING:  # a type checker must see that a name does not exist
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
