"""How a row of logits becomes a token: the stages, their order, and what they remember of a sequence."""
