"""RHIO (Huang et al. 2025, arXiv:2501.13573): unfaithful answers of a model without its retrieval heads, to be told apart from faithful ones."""
