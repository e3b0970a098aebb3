"""The model: one child process per loaded model. Knows tokens, not topics."""
