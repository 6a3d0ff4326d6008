"""Diffusion and flow mathematics: a frozen schedule, paths, and samplers that are pure functions over them."""
