"""What is made from the agent's options and from the chart is as it would be made now."""

import yaml

from scripts import chart
from tests.chart.render import ALL, helm


def test_the_values_know_every_option_of_the_agent_and_no_other() -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    assert list(values["config"]) == [chart.key(action) for action in chart.run_options()]


def test_the_options_and_the_schema_are_current() -> None:
    assert (chart.CHART / "values.yaml").read_text() == chart.values_text(), "run make deploy"
    assert (chart.CHART / "values.schema.json").read_text() == chart.schema_text(), "run make deploy"


def test_the_rendered_files_are_current_and_no_others_are_there() -> None:
    expected = dict(chart.rendered_files())
    for path, content in expected.items():
        assert path.read_text() == content, f"{path} is out of date: run make deploy"
    there = {*chart.DEPLOY.glob("*.yaml"), *chart.GOLDEN.iterdir(), chart.CHART / "README.md"}
    assert there == set(expected)


def test_the_agents_version_is_the_charts() -> None:
    described = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    namespace: dict[str, str] = {}
    exec((chart.ROOT / "vdpa_agent" / "__init__.py").read_text(), namespace)
    assert described["appVersion"] == namespace["__version__"]


def test_lint_finds_nothing() -> None:
    for case in ALL:
        done = helm("lint", "--strict", chart.CHART, "--values", chart.CASES / case)
        assert done.returncode == 0, done.stdout
        assert "[WARNING]" not in done.stdout, done.stdout
