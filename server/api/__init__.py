"""The HTTP edge: OpenAI-compatible endpoints over an engine it knows only through `engine_port`. Imports no torch."""
