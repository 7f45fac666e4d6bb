"""Judges signals that arrive on time and are wrong, such as frozen or clipped. Pure: no clock, no I/O."""
