"""Which sockets may be promised."""

from types import MappingProxyType

from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import DaemonState, DaemonStatus, Device, DeviceState
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping, example_mapping
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.serve.answers import Answers

A, B = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")
BOTH = Loaded(Mapping(MappingProxyType({A: "/v/a", B: "/v/b"})))


def _status(state: DaemonState, **devices: DeviceState) -> DaemonStatus:
    known = {"a": A, "b": B}
    return DaemonStatus(
        managed=True,
        state=state,
        devices=MappingProxyType({known[name]: Device(known[name], "", s) for name, s in devices.items()}),
    )


def test_a_foreign_mapping_is_the_truth() -> None:
    answers = Answers(Latest(BOTH), Latest(DaemonStatus(managed=False)))
    assert [answers.socket_of(text) for text in (A, "82:00.3", "0000:82:00.4", "", "\0", "x" * 10_000)] == [
        "/v/a",
        "/v/b",
        "",
        "",
        "",
        "",
    ]


def test_addresses_in_any_case() -> None:
    mapping = Loaded(Mapping(MappingProxyType({PciAddress("0000:af:00.1"): "/v/a"})))
    answers = Answers(Latest(mapping), Latest(DaemonStatus(managed=False)))
    assert answers.socket_of("AF:00.1") == "/v/a"


def test_our_own_daemon_must_run_and_have_the_device_ready() -> None:
    status = Latest(_status(DaemonState.STARTING, a=DeviceState.READY))
    answers = Answers(Latest(BOTH), status)
    assert answers.socket_of(A) == ""
    status.set(_status(DaemonState.RUNNING, a=DeviceState.READY, b=DeviceState.REMOVING))
    assert (answers.socket_of(A), answers.socket_of(B)) == ("/v/a", "")
    status.set(_status(DaemonState.BACKOFF, a=DeviceState.WANTED))
    assert answers.socket_of(A) == ""


def test_an_answer_follows_the_mapping() -> None:
    mapping: Latest[Loaded[Mapping]] = Latest(Loaded())
    answers = Answers(mapping, Latest(DaemonStatus(managed=False)))
    assert answers.socket_of(A) == ""
    mapping.set(BOTH)
    assert answers.socket_of(A) == "/v/a"
    mapping.set(Loaded(None, "the file is not there"))
    assert answers.socket_of(A) == ""


def test_example_data_is_that_of_the_predecessor() -> None:
    answers = Answers(Latest(Loaded(example_mapping())), Latest(DaemonStatus(managed=False)))
    expected = {"0000:82:00.2": 0, "0000:82:00.7": 5, "0000:82:01.0": 6, "0000:82:01.7": 13, "0000:82:02.1": 15}
    for address, number in expected.items():
        assert answers.socket_of(address) == f"/var/run/vdpa/vhost/vdpa-{number}"
    assert len(example_mapping()) == 16
