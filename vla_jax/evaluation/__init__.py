"""Judging a policy on recorded episodes: metrics, baselines, trajectory drift, latency and the report."""
