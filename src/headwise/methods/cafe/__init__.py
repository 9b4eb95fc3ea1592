"""CAFE (Peng et al. 2025): evidence heads, and answering from the passages that heads choose."""
