"""The console process: pages and JSON of the job database, health and metrics over HTTP."""
