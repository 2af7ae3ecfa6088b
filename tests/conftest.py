"""Fixtures of every test: a real Kubernetes (tests/cluster/README.md). It starts when the first test asks for it.

Property tests try the same examples in every run, however slow the machine: what fails, the change did. To look for new ones:
`pytest --hypothesis-profile=search`.
"""

from hypothesis import HealthCheck, settings

pytest_plugins = ["cluster.fixtures"]

settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile("search"), derandomize=True, database=None)
settings.load_profile("steady")
