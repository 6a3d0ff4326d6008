"""Recorded episodes as they lie on disk: finding them, and one reader for each format."""
