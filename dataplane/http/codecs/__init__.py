"""Wire JSON of callers, one module per dialect: requests to calls, refusals to bodies."""
