"""Decides and remembers: the gRPC service that owns the configuration and the ledger."""
