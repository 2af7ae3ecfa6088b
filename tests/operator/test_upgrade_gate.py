"""No more services move to a new image at once than the limit says."""

from quire_operator.upgrade_gate import UpgradeGate


def decide(gate: UpgradeGate, key: str, wants: bool) -> bool:
    may = gate.may_upgrade(key)
    gate.decided(key, may_upgrade=may, is_upgrading=wants and may)
    return wants and may


def test_nobody_begins_before_all_have_been_seen() -> None:
    asked: list[str] = []
    gate = UpgradeGate(1, asked.append)

    assert not decide(gate, "a", wants=True)
    gate.decided("b", may_upgrade=False, is_upgrading=True)  # begun under a former leader
    gate.open()

    assert asked == ["a"]
    assert not decide(gate, "a", wants=True)
    assert decide(gate, "b", wants=True)


def test_a_free_place_goes_to_who_has_waited_longest() -> None:
    asked: list[str] = []
    gate = UpgradeGate(1, asked.append)
    gate.open()
    assert decide(gate, "a", wants=True)
    for key in ("b", "c"):
        assert not decide(gate, key, wants=True)

    assert not decide(gate, "a", wants=False)

    assert asked == ["b", "c"]
    assert decide(gate, "b", wants=True)
    assert not decide(gate, "c", wants=True)


def test_a_service_that_goes_frees_its_place_and_zero_lets_nobody_in() -> None:
    asked: list[str] = []
    gate = UpgradeGate(1, asked.append)
    gate.open()
    decide(gate, "a", wants=True)
    decide(gate, "b", wants=True)

    gate.forget("a")

    assert asked == ["b"]
    closed = UpgradeGate(0, asked.append)
    closed.open()
    assert not decide(closed, "x", wants=True)
