"""The forward pass of a whole step in one native call, on the CPU: lowered from a loaded model, exact like the rest."""
