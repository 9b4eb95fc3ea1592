"""What an intervention costs: ablation sweeps, needle grids, recall against bytes, perplexity, lm-evaluation-harness."""
