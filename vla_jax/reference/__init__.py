"""What exists because the PyTorch reference does: its samples, names, weights and files."""
