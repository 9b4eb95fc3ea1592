"""Scoring a corpus of any size: files streamed through a `DocumentScorer`, row-aligned score files out, and a choice among them."""
