"""Mutated input at every place where the node reads foreign bytes; `--full` in the long form, 20,000 cases each."""
