"""The inference server: token engine, its process, and the HTTP edge. Imports point downwards only."""
