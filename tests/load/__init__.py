"""The benchmark `poe bench`: what the data plane costs and carries, with figures for a table.

It is a program, not a test: nothing in the gate asserts a time. `bench` starts a stack and prints,
`phases` says what is measured, `generator` drives from a process of its own.
"""
