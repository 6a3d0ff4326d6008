"""Action heads: from a condition to a chunk of actions; one file and one configuration for each.

The heads of this package are known by their kind. One of your own is registered by `register_head`
(`vla_jax.heads.head_config`) wherever it stands, before it is used.
"""
