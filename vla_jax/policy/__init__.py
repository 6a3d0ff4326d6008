"""Policies: the network, what of it is stored, and running it from a directory."""
