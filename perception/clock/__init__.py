"""Clocks: of a device against the host (`samples`), of another host against this one (`remote`). Pure."""
