"""What is promised of results, over many of them: a sample in `make test`, all of them in `make validate`."""
