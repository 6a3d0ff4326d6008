"""Policies from and to the PyTorch reference's checkpoints."""
