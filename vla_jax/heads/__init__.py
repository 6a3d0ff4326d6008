"""Action heads: from a condition to a chunk of actions; one file and one configuration for each."""
