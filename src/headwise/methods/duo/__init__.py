"""DuoAttention (Xiao et al. 2024, arXiv:2410.10819): gates of KV heads, and the cache that they shape."""
