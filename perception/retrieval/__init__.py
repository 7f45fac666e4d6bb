from typing import Final

APART_S: Final = 2.0
"""Between two results, unless asked otherwise: neighbours in time are the same thing seen again."""
