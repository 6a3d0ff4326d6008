"""Training of the policy heads: configuration, one sharded step, the loop, checkpoints and logs."""
