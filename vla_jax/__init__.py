"""vla-jax: JAX/Flax policy heads for robots that insert needles by sight, touch and light."""

__version__ = "0.1.0"
