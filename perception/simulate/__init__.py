"""Whole graphs on a virtual clock, in one thread and without sleeping: `perception simulate`.

A scenario follows from one seed: scripted streams, a fusion, a recorder and faults. The fusion is the real
loop with the real core, early queue, ledger, presence and shedding; the recording goes through the real
`verify`. Invariants are checked after every step.
"""
