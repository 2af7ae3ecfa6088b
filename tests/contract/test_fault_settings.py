"""What may be set about failing workers, refused by the field's name."""

import pytest

from quire_contract.router_settings import FaultSettings, RouterSettingsEntry, settings_problem


@pytest.mark.parametrize(
    ("faults", "problem"),
    [
        (FaultSettings(), None),
        (FaultSettings(consecutive_failures=0, max_resumes=0, resume_wait_s=0.0, hedge_after_s=0.2), None),
        (FaultSettings(lost_after_s=-1.0), "faults.lost_after_s"),
        (FaultSettings(max_ejected_percent=101), "faults.max_ejected_percent"),
        (FaultSettings(max_hedged_percent=200), "faults.max_hedged_percent"),
        (FaultSettings(ejection_s=0.0), "faults.ejection_s"),
    ],
)
def test_settings_of_faults_are_checked_by_name(faults, problem):
    found = settings_problem(RouterSettingsEntry(faults=faults))

    assert (found is None) == (problem is None)
    assert found is None or found.startswith(problem)
