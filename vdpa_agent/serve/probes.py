"""The probes /livez and /readyz: health as kubelets ask for it and people read it."""

from http import HTTPStatus

from vdpa_agent.model.health import Check
from vdpa_agent.serve.http import Answer, Page, Query
from vdpa_agent.serve.view import View


def livez(view: View) -> Page:
    """The page that tells whether the agent can recover by itself."""

    async def page(query: Query) -> Answer:
        reason = "" if view.health().live else "it cannot recover by itself"
        return _answer("livez", (Check("agent", reason),), query)

    return page


def readyz(view: View) -> Page:
    """The page that tells whether the agent is ready, and if not, why."""

    async def page(query: Query) -> Answer:
        return _answer("readyz", (Check("agent"), *view.health().checks), query)

    return page


def _answer(name: str, checks: tuple[Check, ...], query: Query) -> Answer:
    """In the form of kube-apiserver: each check in a line of its own, unless all is well and nobody asks."""
    passed = not any(check.reason for check in checks)
    if passed and "verbose" not in query.words:
        return Answer(b"ok\n")
    lines = [f"[-]{check.name}: {check.reason}" if check.reason else f"[+]{check.name} ok" for check in checks]
    lines.append(f"{name} check {'passed' if passed else 'failed'}")
    status = HTTPStatus.OK if passed else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer("\n".join(lines).encode() + b"\n", status)
