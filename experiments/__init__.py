"""The commands a person runs, each as `vla-jax NAME` or `python -m experiments.NAME`."""
