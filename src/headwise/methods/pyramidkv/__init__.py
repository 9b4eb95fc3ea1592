"""PyramidKV (Cai et al. 2024)."""
