"""Measurements that print figures: each module is one (`python -m bench.broker`); `make bench` runs all, small."""
