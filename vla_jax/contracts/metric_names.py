"""Names of what a run logs, `group/name`, and of the held-out error that decides on the best checkpoint."""

LOSS = "train/loss"
GRADIENT_NORM = "train/gradient_norm"
LEARNING_RATE = "train/learning_rate"

RATE = "time/samples_per_second"
WAITING = "time/data_wait_share"
"""Share of the time in which the loop waited for data."""

VALIDATION = "validation"
"""Group of the held-out errors of the weights that evaluation uses."""
LIVE_VALIDATION = "validation_live"
"""Those of the weights without averaging."""
BEST_METRIC = f"{VALIDATION}/action_mse"
