"""The mock provider: a program of its own that speaks providers' dialects with true usage.

The rest of the data plane knows it only as an upstream, and it imports nothing of theirs.
"""
