"""Model families: declarations, layout of heads, loading, and head-wise edits of weights."""

from headwise.families.declarations import FAMILIES, REFUSED, Family, family_of
from headwise.families.layout import Layout, layout_of
from headwise.families.load import Loaded, load_model
from headwise.families.weights import silence_in_weights

__all__ = ["FAMILIES", "REFUSED", "Family", "Layout", "Loaded", "family_of", "layout_of", "load_model", "silence_in_weights"]
