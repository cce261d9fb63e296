"""One module per (caller's dialect)_(provider's dialect): both directions, and usage on the way."""
