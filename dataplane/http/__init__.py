"""Quart handlers and codecs: wire JSON to calls, answers and refusals to wire JSON."""
