"""HeadKV (Fu et al. 2024)."""
