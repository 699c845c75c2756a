"""The KnowMVG network, one module for each component."""
