"""Action heads: from a condition to a chunk of actions; one file and one configuration for each.

Importing the package registers the heads named here. One of your own is registered by `register_head`
(`vla_jax.heads.action_head`) wherever it stands, before it is used.
"""

from vla_jax.heads import diffusion, regression

__all__ = ["diffusion", "regression"]
