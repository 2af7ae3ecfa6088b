"""`quire tenant`: Tenant resources and their keys, on a cluster or in a file that `quire up` serves."""
