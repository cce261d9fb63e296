"""How what was received becomes what requests see, with no more work than changed."""
