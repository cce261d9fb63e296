"""Forward-only steps of the schema."""
