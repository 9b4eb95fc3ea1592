"""Pure functions of tensors: one file per formula. No model, tokenizer or file."""
