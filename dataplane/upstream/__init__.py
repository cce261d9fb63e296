"""The only outgoing HTTP: providers."""
