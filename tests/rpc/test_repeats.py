"""Which of many lines are logged."""

from vdpa_agent.rpc.repeats import Repeats


class _Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_line_stands_for_those_that_were_not_logged() -> None:
    clock = _Clock()
    repeats = Repeats(clock, at_once=2, every_s=10.0, of_all=100)
    assert [repeats.due("a") for _ in range(1_000)] == [1, 1, *[0] * 998]
    assert [repeats.due("b") for _ in range(3)] == [1, 1, 0]
    clock.now_s = 10.0
    assert [repeats.due("a"), repeats.due("a"), repeats.due("b")] == [999, 0, 2]
    clock.now_s = 1_000.0
    assert [repeats.due("a") for _ in range(3)] == [2, 1, 0]


def test_all_kinds_together_are_bounded() -> None:
    clock = _Clock()
    repeats = Repeats(clock, at_once=1, every_s=10.0, of_all=50)
    for number in range(65_536):
        repeats.due(number)
    assert sum(bool(repeats.due(number)) for number in range(100_000, 165_536)) == 0
    clock.now_s = 10.0
    assert sum(bool(repeats.due(number)) for number in range(200_000, 265_536)) == 50
    assert len(repeats._allowances) <= 4_096
    assert len(repeats._counts) <= 4_096
