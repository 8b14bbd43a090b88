"""A load generator for any OpenAI-compatible server. It speaks HTTP only and imports nothing else of this project."""
