"""DuoAttention (Xiao et al. 2024, arXiv:2410.10819) and ZigzagAttention (Liu et al. 2025, arXiv:2508.12407): gates, and caches by fixed patterns."""
