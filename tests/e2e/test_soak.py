"""The short form of the soak."""

from pathlib import Path

import pytest

from tests.soak import Soak


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1])
def test_a_minute_of_faults_leaves_everything_served_and_nothing_leaked(run_dir: Path, seed: int) -> None:
    report = Soak(run_dir, 60, seed).run(lambda _: None)
    assert not report.problems, report.table()
    assert report.counts["packets that came back"] > 0, report.table()
    assert report.counts["daemon killed"] > 0, report.table()
