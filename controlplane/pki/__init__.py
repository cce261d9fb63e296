"""Certificates between the planes: the service's own authority, and the operator's files instead of it."""
