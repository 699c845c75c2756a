"""Faults of every kind: nothing acknowledged is lost, nothing is delivered twice. `make faults` is the long form."""
