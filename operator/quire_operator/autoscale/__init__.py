"""The autoscaler: what it is told, by what it decides, what it answers. Pure but for its listener and its loop."""
