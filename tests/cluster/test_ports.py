"""Ports for processes that are yet to start."""

from cluster.processes import PORTS, free_ports


def test_who_asks_again_gets_other_ports():
    """Whoever was given the first ones may not listen on them yet."""
    given = [port for _ in range(300) for port in free_ports(10)]

    assert len(set(given)) == 3000
    assert set(given) <= set(PORTS)


def test_ports_never_run_out():
    assert len(set(free_ports(8000))) == 8000
