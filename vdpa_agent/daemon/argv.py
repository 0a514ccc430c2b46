"""The command line of vdpad."""

from pathlib import Path

from vdpa_agent.config import DaemonConfig


def vdpad_argv(config: DaemonConfig, socket_list: Path, control_fd: int) -> list[str]:
    """Builds the argument vector of a vdpad that starts with no device and is told of each over `control_fd`."""
    argv = [
        config.program,
        f"--control-fd={control_fd}",
        f"--socket-list={socket_list}",
        f"--socket-dir={config.socket_dir}",
        f"--socket-mode={config.socket_mode:04o}",
        f"--vhost-mode={config.vhost_mode}",
        f"--memory={config.memory}",
        f"--log-level={config.log_level}",
    ]
    if config.socket_owner is not None:
        argv.append(f"--socket-owner={config.socket_owner}")
    if config.socket_group is not None:
        argv.append(f"--socket-group={config.socket_group}")
    if config.simulate:
        argv.append("--simulate")
    return argv
