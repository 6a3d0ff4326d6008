"""What survives being killed: write-then-rename, locks, checksums, stop signals, workers; configurations as JSON."""
