"""Carries out Deployments as local processes: the embedded replacement of a cluster for `quire up`."""
