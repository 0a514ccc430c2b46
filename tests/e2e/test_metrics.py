"""Metrics and probes of real agents: each metric is moved by what it tells of."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.e2e.conftest import FOUR
from tests.processes import (
    ROOT,
    WITH_HTTP,
    AgentProcess,
    eventually,
    front_end,
    get_page,
    mapping_text,
    running,
    series,
    write_atomically,
    write_list,
)
from vdpa_agent import __version__

FAKE = ROOT / "tests" / "daemon" / "fake_vdpad.py"
GOLDEN = ROOT / "tests" / "e2e" / "metrics.golden"


def _fake(*faults: str) -> dict[str, str]:
    return {"FAKE_VDPAD": ",".join(faults)}


def _method(kind: str, service: str, method: str) -> dict[str, Any]:
    return {"grpc_type": kind, "grpc_service": service, "grpc_method": method}


def _raw(call: Any) -> Any:
    """A call of grpcio that sends bytes as they are, whatever its types say."""
    return call


def _kill_until_it_waits(agent: AgentProcess) -> int:
    """Kills the daemon until one had not been healthy for 10 s, as on a loaded machine; returns how often."""
    kills = 0
    while True:
        kills += 1
        _kill_daemon(agent)
        if agent.wait_logged("daemon_restart_waits", count=kills)["delay_s"]:
            return kills
        agent.wait_logged("daemon_running", count=kills + 1)


def _kill_daemon(agent: AgentProcess) -> None:
    os.kill(agent.daemon_pid(), signal.SIGKILL)


def test_names_types_and_meanings_are_those_that_people_rely_on(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    with running(run_dir, *options, WITH_HTTP) as agent:
        agent.wait_logged("device_ready", count=4)
        _kill_daemon(agent)
        agent.wait_logged("device_ready", count=8)
        text = agent.get("/metrics")[1]
    told = "".join(line + "\n" for line in text.splitlines() if line.startswith("#"))
    assert told == GOLDEN.read_text(), f"if that is meant: change {GOLDEN}, and run make metrics"


def test_a_life_of_the_daemon(run_dir: Path, options: tuple[str, ...]) -> None:
    with running(run_dir, *options, WITH_HTTP) as agent:
        agent.wait_metric("vdpa_agent_role", 1, role="waiting")
        assert agent.metric("vdpa_agent_build_info", version=__version__) == 1
        assert agent.metric("vdpa_agent_ready") == 1  # it waits for a list
        assert agent.metric("vdpa_agent_daemon_up") is None
        began = time.time()
        write_list(agent.pci_list, FOUR)
        agent.wait_metric("vdpa_agent_devices", 4, state="ready")
        assert agent.metric("vdpa_agent_role", role="managing") == 1
        assert agent.metric("vdpa_agent_daemon_up") == agent.metric("vdpa_agent_daemon_ready") == 1
        assert agent.metric("vdpa_agent_daemon_state", state="running") == 1
        started = agent.metric("vdpa_agent_daemon_start_time_seconds")
        assert started is not None
        assert began <= started <= time.time()
        assert agent.metric("vdpa_agent_daemon_last_exit_code") is None
        kills = _kill_until_it_waits(agent)
        plain: frozenset[tuple[str, str]] = frozenset()

        def waiting() -> dict[tuple[str, frozenset[tuple[str, str]]], float] | None:
            found = series(agent.get("/metrics")[1])
            return found if found["vdpa_agent_daemon_backoff_seconds", plain] else None

        now = eventually("the pause", waiting)
        assert now["vdpa_agent_ready", plain] == now["vdpa_agent_daemon_up", plain] == 0
        assert now["vdpa_agent_daemon_ready", plain] == 0
        assert 0.8 <= now["vdpa_agent_daemon_backoff_seconds", plain] <= 1.2
        assert now["vdpa_agent_daemon_last_exit_code", plain] == 128 + signal.SIGKILL
        assert ("vdpa_agent_daemon_start_time_seconds", plain) not in now
        agent.wait_metric("vdpa_agent_ready", 1)
        assert agent.metric("vdpa_agent_daemon_restarts_total", reason="signal") == kills
        assert agent.metric("vdpa_agent_daemon_backoff_seconds") == 0
        assert agent.metric("vdpa_agent_daemon_crash_loop") == 0
        os.kill(agent.daemon_pid(), signal.SIGSTOP)
        text = agent.get("/metrics")[1]
        assert "\nvdpa_agent_daemon_up 1.0\n" in text
        assert "\nvdpa_agent_device_statistic_total{" not in text  # only the daemon could have told
        eventually("unhealthy", lambda: agent.metric("vdpa_agent_daemon_ready") == 0)
        assert agent.metric("vdpa_agent_daemon_up") == 1
        os.kill(agent.daemon_pid(), signal.SIGCONT)


def test_a_crash_loop(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with running(run_dir, "--daemon-command=false", WITH_HTTP) as agent:
        agent.wait_metric("vdpa_agent_daemon_crash_loop", 1, timeout_s=40)
        assert agent.metric("vdpa_agent_daemon_restarts_total", reason="exit") == 4
        assert agent.metric("vdpa_agent_daemon_last_exit_code") == 1
        status, text = agent.get("/readyz")
        assert (status, agent.get("/livez")) == (503, (200, "ok\n"))
        assert "[-]daemon: the daemon is in state backoff, in a crash loop: exit code 1\n" in text


def test_a_daemon_that_does_not_answer(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with running(run_dir, f"--vdpad={FAKE}", "--simulate", WITH_HTTP, environment=_fake("aloof")) as agent:
        agent.wait_metric("vdpa_agent_daemon_restarts_total", 1, reason="unresponsive")


def test_a_daemon_that_cannot_be_started(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:1])
    (run_dir / "vhost").write_text("in the way")
    with running(run_dir, *options, WITH_HTTP) as agent:
        agent.wait_metric("vdpa_agent_daemon_restarts_total", 1, reason="not_started")
        assert agent.metric("vdpa_agent_daemon_last_exit_code") is None


def test_files(run_dir: Path, options: tuple[str, ...]) -> None:
    with running(run_dir, *options, WITH_HTTP) as agent:
        agent.wait_metric("vdpa_agent_file_readings_total", 1, file="device_list", result="absent")
        assert agent.metric("vdpa_agent_file_loaded_timestamp_seconds", file="device_list") is None
        began = time.time()
        write_list(agent.pci_list, FOUR)
        # vdpad writes it after each device, so it may be read more than once.
        mapping = {"file": "mapping", "result": "loaded"}
        eventually("a mapping", lambda: (agent.metric("vdpa_agent_file_readings_total", **mapping) or 0) >= 1)
        assert agent.metric("vdpa_agent_file_readings_total", file="device_list", result="loaded") == 1
        loaded = agent.metric("vdpa_agent_file_loaded_timestamp_seconds", file="mapping")
        assert loaded is not None
        assert began <= loaded <= time.time()
        write_list(agent.pci_list, ["nonsense"])
        agent.wait_metric("vdpa_agent_file_refused", 1, file="device_list")
        assert agent.metric("vdpa_agent_file_readings_total", file="device_list", result="refused") == 1
        write_list(agent.pci_list, FOUR[:3])
        agent.wait_metric("vdpa_agent_file_refused", 0, file="device_list")


def test_devices_come_move_and_go(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:2])
    with running(run_dir, *options, WITH_HTTP, "--drain-timeout=1") as agent:
        agent.wait_metric("vdpa_agent_devices", 2, state="ready")
        socket = agent.ask(FOUR[0])
        assert agent.metric("vdpa_agent_device_ready", pciAddr=FOUR[0]) == 1
        assert agent.metric("vdpa_agent_device_connected", pciAddr=FOUR[0]) == 0
        info = {"pciAddr": FOUR[0], "socket": socket, "driver": "vdpa_sim", "numa_node": ""}
        assert agent.metric("vdpa_agent_device_info", **info) == 1
        packets = {"pciAddr": FOUR[0], "queue": "1", "statistic": "packets"}
        assert agent.metric("vdpa_agent_device_statistic_total", **packets) == 0
        with front_end(socket, "--rate=5000", "--interval=0.1") as front:
            front.wait_passing()
            agent.wait_metric("vdpa_agent_devices", 1, state="connected")
            assert agent.metric("vdpa_agent_device_connected", pciAddr=FOUR[0]) == 1
            eventually("packets", lambda: (agent.metric("vdpa_agent_device_statistic_total", **packets) or 0) > 0)
            write_list(agent.pci_list, FOUR[1:2])
            agent.wait_metric("vdpa_agent_devices", 1, state="removing")
            assert agent.metric("vdpa_agent_device_ready", pciAddr=FOUR[0]) == 0
            agent.wait_metric("vdpa_agent_devices", 0, state="removing")
        assert FOUR[0] not in agent.get("/metrics")[1]
        Path(agent.ask(FOUR[1])).unlink()
        agent.wait_metric("vdpa_agent_devices", 1, state="failed")
        assert agent.metric("vdpa_agent_device_ready", pciAddr=FOUR[1]) == 0
        agent.wait_metric("vdpa_agent_devices", 1, state="ready")


def test_devices_of_any_other_program(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    with running(run_dir, "--daemon-command=sleep 1000", WITH_HTTP) as agent:
        agent.wait_metric("vdpa_agent_devices", 4, state="starting")
        _kill_daemon(agent)
        agent.wait_metric("vdpa_agent_devices", 4, state="wanted")


def test_a_foreign_mapping(run_dir: Path) -> None:
    with running(run_dir, WITH_HTTP) as agent:
        write_atomically(agent.socket_list, mapping_text({FOUR[0]: "/v/a"}))
        agent.wait_metric("vdpa_agent_role", 1, role="serving")
        assert agent.metric("vdpa_agent_ready") == 1
        assert agent.metric("vdpa_agent_devices", state="ready") == 1
        assert agent.metric("vdpa_agent_device_ready", pciAddr=FOUR[0]) == 1
        assert agent.metric("vdpa_agent_device_connected", pciAddr=FOUR[0]) is None
        assert agent.get("/readyz?verbose") == (200, "[+]agent ok\n[+]socket ok\n[+]mapping ok\nreadyz check passed\n")


def test_what_is_asked(run_dir: Path) -> None:
    with running(run_dir, "--simulate", f"--vdpad={FAKE}", "--hold-timeout=60", WITH_HTTP) as agent:
        with ThreadPoolExecutor() as callers:
            call = callers.submit(agent.ask, FOUR[0])
            agent.wait_metric("vdpa_agent_held_calls", 1)
            write_list(agent.pci_list, FOUR[:1])
            assert call.result()
        assert agent.metric("vdpa_agent_held_calls") == 0
        assert agent.metric("vdpa_agent_answers_total", result="promised") == 1
        assert agent.ask("0000:99:00.0") == agent.ask("nonsense") == ""
        assert agent.metric("vdpa_agent_answers_total", result="unknown") == 2
        assert agent.metric("vdpa_agent_answers_total", result="not_ready") == 0


def test_an_answer_that_came_too_early(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with running(run_dir, "--daemon-command=sleep 1000", WITH_HTTP) as agent:
        assert agent.ask(FOUR[0]) == ""
        assert agent.metric("vdpa_agent_answers_total", result="not_ready") == 1


def test_calls_and_callers(run_dir: Path) -> None:
    with running(run_dir, WITH_HTTP) as agent:
        call: dict[str, Any] = {
            "grpc_type": "unary",
            "grpc_service": "vdpadpdk.VdpaDpdk",
            "grpc_method": "GetSocketpath",
        }
        assert agent.metric("grpc_server_handled_total", **call, grpc_code="OK") == 0
        assert agent.ask("nonsense") == ""
        # The call is counted when it is over, which is after its answer.
        agent.wait_metric("grpc_server_handled_total", 1, **call, grpc_code="OK")
        assert agent.metric("grpc_server_handling_seconds_count", **call) == 1
        assert agent.metric("grpc_server_handling_seconds_bucket", **call, le="+Inf") == 1
        assert (agent.metric("grpc_server_handling_seconds_sum", **call) or 0) > 0
        assert agent.metric("vdpa_agent_grpc_connections") == 1
        for path in ("/vdpa_agent.v1.DeviceService/GetDevice", "/no/such", "/" + "x" * 100 + "/y"):
            with pytest.raises(grpc.RpcError):
                _raw(agent.channel.unary_unary(path))(b"", timeout=10)
        refused: dict[str, Any] = {
            "grpc_type": "unary",
            "grpc_service": "vdpa_agent.v1.DeviceService",
            "grpc_method": "GetDevice",
        }
        agent.wait_metric("grpc_server_handled_total", 1, **refused, grpc_code="InvalidArgument")
        unknown = _method("unary", "unknown", "unknown")
        assert agent.metric("grpc_server_handled_total", **unknown, grpc_code="Unimplemented") == 2
        watch = _raw(agent.channel.unary_stream("/grpc.health.v1.Health/Watch"))(b"")
        assert next(watch) is not None
        watch.cancel()
        watched: dict[str, Any] = {
            "grpc_type": "server_stream",
            "grpc_service": "grpc.health.v1.Health",
            "grpc_method": "Watch",
        }
        agent.wait_metric("grpc_server_handled_total", 1, **watched, grpc_code="Canceled")
        assert agent.metric("vdpa_agent_grpc_turned_away_total", reason="preface") == 0
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(agent.listen))
            agent.wait_metric("vdpa_agent_grpc_connections", 2)
            agent.wait_metric("vdpa_agent_grpc_turned_away_total", 1, reason="preface")
        agent.wait_metric("vdpa_agent_grpc_connections", 1)


def test_there_are_few_series_whatever_is_asked(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    with running(run_dir, *options, WITH_HTTP) as agent:
        agent.wait_metric("vdpa_agent_ready", 1)
        found = [name for name, labels in series(agent.get("/metrics")[1]) if not dict(labels).get("pciAddr")]
        assert len(found) <= 170  # 200 with every status that methods can end with


def test_log_lines_of_a_daemon_that_are_dropped(run_dir: Path) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with running(run_dir, f"--vdpad={FAKE}", "--simulate", WITH_HTTP, environment=_fake("chatty")) as agent:
        eventually("drops", lambda: (agent.metric("vdpa_agent_log_lines_dropped_total", source="daemon") or 0) > 1000)
        before = agent.metric("vdpa_agent_log_lines_dropped_total", source="daemon") or 0
        _kill_daemon(agent)
        agent.wait_logged("daemon_started", count=2)
        assert (agent.metric("vdpa_agent_log_lines_dropped_total", source="daemon") or 0) >= before


def test_log_lines_of_the_agent_that_nobody_reads(run_dir: Path) -> None:
    command = [sys.executable, "-m", "vdpa_agent", "run", f"--listen={run_dir}/s", f"--pci-list={run_dir}/p"]
    command += [f"--socket-list={run_dir}/m", "--log-format=json", WITH_HTTP]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            address = next(e["address"] for e in map(json.loads, process.stderr) if e["event"] == "http_listening")
            process.stderr.close()
            (run_dir / "m").write_text("[]")
            dropped = ("vdpa_agent_log_lines_dropped_total", frozenset({("source", "agent")}))
            eventually("drops", lambda: series(get_page(address, "/metrics")[1])[dropped] > 0)
        finally:
            process.kill()


def test_probes_say_the_words_of_status(run_dir: Path, options: tuple[str, ...]) -> None:
    with running(run_dir, *options, WITH_HTTP) as agent:
        agent.wait_logged("file_absent", count=2)
        assert agent.get("/livez?verbose") == (200, "[+]agent ok\nlivez check passed\n")
        waits = f"a device list at {agent.pci_list}, or a mapping at {agent.socket_list}"
        assert agent.get("/readyz") == (200, "ok\n")
        page = f"[+]agent ok\n[+]socket ok\n[+]mapping ok\n[+]device list ok\n[!]waits for {waits}\n"
        assert agent.get("/readyz?verbose") == (200, f"{page}readyz check passed\n")
        assert _status(agent)["waiting_for"] == waits
        write_list(agent.pci_list, FOUR[:2])
        agent.wait_answer(FOUR[1], str(run_dir / "vhost" / "vdpa-1"))
        lines = "[+]agent ok\n[+]socket ok\n[+]device list ok\n[+]daemon ok\n[+]socket directory ok\n"
        assert agent.get("/readyz?verbose") == (200, f"{lines}readyz check passed\n")
        (run_dir / "vhost" / "vdpa-2").write_text("in the way")
        write_list(agent.pci_list, FOUR[:3])
        agent.wait_logged("device_failed", device=FOUR[2])
        assert agent.get("/readyz") == (200, "ok\n")  # one broken VF holds up no rollout

        def shown() -> str:
            return f"{lines}[!]device {FOUR[2]}: {_status(agent)['degraded_reasons'][0]}\nreadyz check passed\n"

        # It is tried again and again, so the two are not always asked in the same moment.
        eventually("the same words", lambda: agent.get("/readyz?verbose") == (200, shown()))
        _kill_daemon(agent)
        eventually("unreadiness", lambda: agent.get("/readyz")[0] == 503 or len(agent.log.named("daemon_started")) == 2)


def _status(agent: AgentProcess) -> dict[str, Any]:
    shown = subprocess.run(
        [sys.executable, "-m", "vdpa_agent", "status", f"--address={agent.listen}", "-o", "json"],
        check=True,
        capture_output=True,
    )
    return dict(json.loads(shown.stdout))
