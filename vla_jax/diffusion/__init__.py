"""Diffusion mathematics: a frozen schedule and samplers that are pure functions over it."""
