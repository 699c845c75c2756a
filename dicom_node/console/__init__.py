"""The console process: health, metrics and the job database over HTTP, to read only and on this host only."""
