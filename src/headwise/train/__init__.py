"""Training with heads, on the Trainer of transformers with adapters of peft: losses on chosen heads, exact resume, merged checkpoints."""
