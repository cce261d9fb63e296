"""The data plane: authenticates, limits, routes and forwards calls to providers."""
