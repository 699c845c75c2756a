"""Makes `python -m dicom_node.cli` the same as `knowmvg`; the node starts its own processes this way."""

from dicom_node.cli import main

main()
