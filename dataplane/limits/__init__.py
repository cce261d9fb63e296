"""The limiter: the only part of the data plane that knows Redis."""
