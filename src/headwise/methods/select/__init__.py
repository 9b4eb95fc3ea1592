"""Scores of documents by which a corpus is selected."""
