"""Generated chest radiographs with generated reports."""
