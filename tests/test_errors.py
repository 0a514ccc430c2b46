"""What comes out of groups of errors."""

from vdpa_agent.errors import AgentError, AlreadyRunning, DaemonUnusable, leaf, unwrapped

_OURS = DaemonUnusable("no vdpad")


def test_a_group_of_our_own_errors_is_its_first_one() -> None:
    group = BaseExceptionGroup("a", [ExceptionGroup("b", [_OURS, AlreadyRunning("s")]), AgentError("c")])
    assert unwrapped(group) is _OURS
    assert leaf(group) is _OURS
    assert leaf(_OURS) is _OURS


def test_a_defect_is_not_hidden_by_an_error_beside_it() -> None:
    for defect in (KeyError("k"), KeyboardInterrupt(), ExceptionGroup("b", [_OURS, ValueError("v")])):
        group = BaseExceptionGroup("a", [_OURS, defect])
        assert unwrapped(group) is group
