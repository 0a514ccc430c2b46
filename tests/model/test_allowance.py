"""Budgets, on virtual time."""

from vdpa_agent.model.allowance import Allowance


def test_a_burst_then_a_rate() -> None:
    allowance = Allowance(100.0, burst=10, per_s=2)
    assert allowance.left(100.0) == 10
    allowance.spend(10)
    assert allowance.left(100.0) == 0
    assert allowance.left(101.5) == 3
    assert allowance.left(1000.0) == 10


def test_who_spends_more_than_there_is_waits_longer() -> None:
    allowance = Allowance(0.0, burst=10, per_s=2)
    assert allowance.wait_s(0.0) == 0
    allowance.spend(13)
    assert allowance.wait_s(0.0) == 1.5
    assert allowance.wait_s(1.0) == 0.5
    assert allowance.wait_s(2.0) == 0
    assert allowance.left(2.0) == 1
