"""ZigzagAttention (Liu et al. 2025, arXiv:2508.12407): whole layers keep the text, or its first and most recent tokens."""
