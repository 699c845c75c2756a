"""Measurements that print figures: each module is one (`python -m bench.broker`); `make bench` runs all, small."""

from dicom_node.cli.options import share_cores

share_cores()  # as every process of the node does, whose parts are measured here
