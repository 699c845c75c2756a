"""Where DICOM and model meet: the steps of a study's life, and the queues that run them."""
