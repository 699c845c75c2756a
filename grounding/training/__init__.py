"""From material to a model folder."""
