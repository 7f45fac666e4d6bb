"""Fuzzing of all that comes from outside: `python -m tests.fuzz TARGET --cases N`."""
