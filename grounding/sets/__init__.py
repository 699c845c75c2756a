"""Grounding sets: manifests, and the published files that become manifests."""
