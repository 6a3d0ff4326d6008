"""Pages and figures for people: evaluation, comparison, inspection."""
