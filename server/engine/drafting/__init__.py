"""Ways of guessing tokens ahead of the model. A wrong guess costs time, never a token: see `server.engine.verify`."""
