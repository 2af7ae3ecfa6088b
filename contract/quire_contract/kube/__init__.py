"""A small client of the Kubernetes API: get, list, watch, apply. What operator and router share; needs aiohttp only."""
