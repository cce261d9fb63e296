"""The only gRPC client: configuration in, usage out."""
