"""Faults injected into a whole graph of real processes, and what was observed: `perception torture`.

`witness` receives what the graph publishes, `graph` starts it, `faults` break it, `campaign` decides when and
judges by the invariants, `link` does so with two hosts in network namespaces. Nothing imports this package
but its command.
"""
