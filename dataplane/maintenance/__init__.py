"""What keeps counters and the ledger in agreement: reaping, comparing, rebuilding, verifying."""
