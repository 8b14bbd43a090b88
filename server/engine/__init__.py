"""Token ids in, token ids out: synchronous, with no HTTP, no text and no metrics library."""
