"""Everything inside the forward pass: configuration, layers, attention, KV storage, tokenizer and checkpoints."""
