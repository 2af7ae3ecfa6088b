"""Commands that talk to a cluster's API server: status, rollback, pause, resume."""
