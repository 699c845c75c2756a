"""The DICOM side of the node: receiving, keeping, reading and writing instances. Never imports torch or celery."""
