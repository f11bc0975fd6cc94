"""Integrity: poisoned data, backdoors, faults in the weights."""
