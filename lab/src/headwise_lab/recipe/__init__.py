"""How the lab models are made: corpus, tokenizer, mixture, training, evaluation."""
