"""AdaKV (Feng et al. 2024)."""
