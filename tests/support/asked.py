"""The requests that agents get while a test runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from toolkit.agent.requests import Request


def operations(sent: list[dict[str, Any]]) -> list[str]:
    """The operations of recorded requests. A measurement that other programs disturbed is taken twice, and again
    before the next benchmark: all of them after the first are left out.
    """
    asked = [request["op"] for request in sent]
    first = asked.index("measure") if "measure" in asked else len(asked)
    return asked[: first + 1] + [op for op in asked[first + 1 :] if op != "measure"]


def record_requests(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the requests to every device from now on, as their JSON has them, without the sender (`by`)."""
    found: list[dict[str, Any]] = []
    message = Request.message

    def recorded(request: Request[Any], by: str) -> dict[str, Any]:
        said = message(request, by)
        found.append({key: value for key, value in json.loads(json.dumps(said)).items() if key != "by"})
        return said

    monkeypatch.setattr(Request, "message", recorded)
    return found
