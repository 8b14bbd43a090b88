"""Makes checkpoints: text to tokens, the training loop, its logs and reports. It never imports the server."""
