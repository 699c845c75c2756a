"""Tests of the node: unit, integration, acceptance, model and repo; datasets come from `tests.builders`."""
