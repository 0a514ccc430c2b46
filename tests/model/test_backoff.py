"""Delays before retries."""

from vdpa_agent.model.backoff import Backoff


def test_doubles_up_to_the_cap() -> None:
    backoff = Backoff(first_s=1, cap_s=60)
    assert [backoff.delay_s(failures, 0) for failures in (1, 2, 3, 6, 7, 100, 100_000)] == [1, 2, 4, 32, 60, 60, 60]


def test_jitter_varies_a_delay_by_its_share_either_way() -> None:
    backoff = Backoff(first_s=10, jitter=0.2)
    assert (backoff.delay_s(1, -1), backoff.delay_s(1, 1)) == (8, 12)
