"""A policy behind a socket: what goes over it, how requests are read and batched, and the server."""
