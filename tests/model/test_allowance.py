"""Budgets, on virtual time."""

from vdpa_agent.model.allowance import Allowance


class _Clock:
    """A time that the test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_burst_then_a_rate() -> None:
    clock = _Clock()
    allowance = Allowance(clock, burst=10, per_s=2)
    assert allowance.left() == 10
    allowance.spend(10)
    assert allowance.left() == 0
    clock.now_s += 1.5
    assert allowance.left() == 3
    clock.now_s += 1_000
    assert allowance.left() == 10


def test_what_is_taken_must_be_there() -> None:
    clock = _Clock()
    allowance = Allowance(clock, burst=3, per_s=2)
    assert [allowance.take() for _ in range(4)] == [True, True, True, False]
    assert not allowance.has(1)
    clock.now_s += 0.5
    assert allowance.has(1)
    assert not allowance.take(2)
    assert allowance.take()
    assert not allowance.take()


def test_more_than_there_can_be_is_taken_when_all_is_there() -> None:
    clock = _Clock()
    allowance = Allowance(clock, burst=3, per_s=1)
    assert allowance.take(100)
    assert not allowance.take(100)


def test_who_spends_more_than_there_is_waits_longer() -> None:
    clock = _Clock()
    allowance = Allowance(clock, burst=10, per_s=2)
    assert allowance.wait_s() == 0
    allowance.spend(13)
    assert allowance.wait_s() == 1.5
    clock.now_s += 1
    assert allowance.wait_s() == 0.5
    clock.now_s += 1
    assert allowance.wait_s() == 0
    assert allowance.left() == 1


def test_nobody_owes_more_than_a_burst() -> None:
    allowance = Allowance(_Clock(), burst=10, per_s=2)
    allowance.spend(1_000_000)
    assert allowance.wait_s() == 5


def test_what_is_given_back_is_no_more_than_there_can_be() -> None:
    allowance = Allowance(_Clock(), burst=10, per_s=2)
    allowance.spend(4)
    allowance.give(3)
    assert allowance.left() == 9
    allowance.give(3)
    assert allowance.left() == 10
