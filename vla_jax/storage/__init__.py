"""What reaches the disk whole: write-then-rename, locks, checksums, stop signals, configurations as JSON."""
