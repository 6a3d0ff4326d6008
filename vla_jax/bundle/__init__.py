"""A policy as a folder that runs with jax and numpy alone: an exported program, its weights and what they mean."""
