"""The commands a person runs, each as `python -m experiments.NAME`."""
