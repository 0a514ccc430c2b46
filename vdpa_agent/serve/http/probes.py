"""The probes /livez and /readyz: health as kubelets ask for it and people read it."""

from collections.abc import Sequence
from http import HTTPStatus

from vdpa_agent.model.health import Check
from vdpa_agent.serve.http.server import Answer, Page, Query
from vdpa_agent.serve.view import View


def livez(view: View) -> Page:
    """The page that says whether the agent can recover by itself."""

    async def page(query: Query) -> Answer:
        return _answer("livez", (Check("agent", view.served.health.not_live),), (), query)

    return page


def readyz(view: View) -> Page:
    """The page that says whether the agent is ready, and if not, why."""

    async def page(query: Query) -> Answer:
        health = view.served.health
        checks = (Check("agent"), *health.checks)
        # What is not as it should be, and yet no reason to stop a rollout.
        notes = [f"{check.name}: {check.reason}" for check in health.degraded]
        if health.waiting_for:
            notes.append(f"waits for {health.waiting_for}")
        return _answer("readyz", checks, notes, query)

    return page


def _answer(name: str, checks: Sequence[Check], notes: Sequence[str], query: Query) -> Answer:
    """In the form of kube-apiserver: a line for each check, or one word where all is well and the query not verbose."""
    passed = not any(check.reason for check in checks)
    if passed and "verbose" not in query.words:
        return Answer(b"ok\n")
    lines = [f"[-]{check.name}: {check.reason}" if check.reason else f"[+]{check.name} ok" for check in checks]
    lines += [f"[!]{note}" for note in notes]
    lines.append(f"{name} check {'passed' if passed else 'failed'}")
    status = HTTPStatus.OK if passed else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer("\n".join(lines).encode() + b"\n", status)
