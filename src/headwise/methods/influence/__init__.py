"""AttentionInfluence (Hua et al. 2025): proxy heads, and documents scored by the loss increase when the heads are ablated."""
