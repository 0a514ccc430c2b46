"""Fixtures of the tests on a real cluster.

How to write a test: take `cluster` (a module's own node, on and ready) or `agent` (the same, with the chart installed
and its agent ready). Both are shared by the tests of the module: what a test changes, it puts back, and its pods go
into `namespace`, which is its own.

    def test_a_pod_passes_packets(agent: Cluster, namespace: str) -> None:
        agent.apply(front("front", VFS[0]), namespace=namespace)
        agent.wait("pod/front", SUCCEEDED, namespace=namespace)
        assert counts(agent, "front", namespace)["received"] == 1000

`kubectl`, `helm`, `get`, `logs`, `ask` return what was printed and fail with it; `expect=1` expects a failure, and
returns its words. `install("--set=...")` changes the release; `restart_kubelet`, `power_cut` and `boot` do to the node
what they say; `node.run` and `node.path` reach into it. Wait by `wait` or `eventually`, never by the clock. A failed
test prints pods, events and logs.
"""

import secrets
from collections.abc import Generator, Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.node import temporary

_CLUSTER = pytest.StashKey[Cluster]()


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A node of the module's own, ready; nothing of it stays on the machine."""
    with temporary() as node:
        made = Cluster(node)
        request.node.stash[_CLUSTER] = made
        made.boot()
        yield made


@pytest.fixture(scope="module")
def agent(cluster: Cluster) -> Cluster:
    """The same, with the chart installed on simulated VFs and its agent ready."""
    cluster.install()
    return cluster


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    cluster.wait("serviceaccount/default", "jsonpath={.metadata.name}=default", namespace=name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds what the cluster says to a failure."""
    report = yield
    module = item.getparent(pytest.Module)
    if report.failed and module is not None and _CLUSTER in module.stash:
        report.sections.append(("cluster", module.stash[_CLUSTER].report()))
    return report
