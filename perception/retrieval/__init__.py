from typing import Final

APART_S: Final = 2.0
"""Default least time between two results: neighbours in time show the same scene again."""
