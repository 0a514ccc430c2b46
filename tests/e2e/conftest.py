"""The two builds of the daemon that the end-to-end tests run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import AgentProcess, built, running


def simulated(build: str, target: str) -> tuple[str, ...]:
    """The options of an agent on software devices."""
    return ("--simulate", "--memory=none", f"--vdpad={built(f'{build}/vdpad/vdpad', target)}")


@pytest.fixture
def options() -> tuple[str, ...]:
    return simulated("native", "native")


@pytest.fixture(params=["native", "native-sanitized"])
def each_build(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return simulated(request.param, request.param)


@pytest.fixture
def four(run_dir: Path, options: tuple[str, ...]) -> Iterator[AgentProcess]:
    """An agent that serves four software devices."""
    (run_dir / "pciList.dat").write_text("".join(f"{address}\n" for address in FOUR))
    with running(run_dir, *options) as agent:
        for number, address in enumerate(FOUR):
            agent.wait_answer(address, str(run_dir / "vhost" / f"vdpa-{number}"))
        yield agent


FOUR = tuple(f"0000:82:00.{function}" for function in range(2, 6))
