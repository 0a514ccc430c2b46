"""The arguments of the rendered pods are run: the agent's, on simulated devices, then those of the `helm test` pod."""

import os
import subprocess
import sys
from pathlib import Path

from tests.chart.render import container, objects, of_kind
from tests.processes import JsonLines, built

PATIENCE_S = 20


def test_the_rendered_pods_do_what_they_are_for(run_dir: Path) -> None:
    # Below another run directory, where the kubelet would mount the device list elsewhere.
    vdpad = built("native/vdpad/vdpad", "native")
    own = {"pciList": "pciList.dat", "resourceConfig": "config.json", "kubeletDir": "kubelet", "deviceInfoDir": "info"}
    places = ",".join(f"config.{option}={run_dir / name}" for option, name in own.items()) + ",config.sysfs=/sys"
    arguments = f"--set=runDirectory={run_dir},{places},config.vdpad={vdpad},config.httpListen=null"
    things = objects(arguments, case="simulated.yaml")
    for config_map in of_kind("ConfigMap", things):
        for name, content in config_map["data"].items():
            (run_dir / name).write_text(content)
    agent = container(arguments, case="simulated.yaml")
    (test,) = of_kind("Pod", things)
    inherited = dict(os.environ)  # noqa: TID251 - the container's environment goes on top of it

    with subprocess.Popen(
        [sys.executable, "-m", "vdpa_agent", *agent["args"]],
        stderr=subprocess.PIPE,
        text=True,
        env=inherited | {entry["name"]: entry["value"] for entry in agent["env"]},
    ) as process:
        try:
            assert process.stderr is not None
            log = JsonLines(process.stderr)
            log.wait(process, "device_ready", count=4)
            asked = []
            for step in (*test["spec"]["initContainers"], *test["spec"]["containers"]):
                environment = {entry["name"]: entry["value"] for entry in step["env"]}
                done = subprocess.run(
                    [sys.executable, "-m", "vdpa_agent", *step["args"]],
                    check=False,
                    capture_output=True,
                    text=True,
                    env=inherited | environment,
                    timeout=PATIENCE_S,
                )
                asked.append((done.returncode, done.stdout.split()))
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
    assert asked == [(0, ["SERVING"]), (0, ["ADDRESS", "SOCKET", "0000:82:00.2", f"{run_dir}/vhost/vdpa-0"])]
