"""MuDAF (Liu et al. 2025, arXiv:2502.13963): heads that pick the gold passages of a question, and contrastive losses that teach heads to do so."""
