from __future__ import annotations

import pytest

from toolkit.events import Event, Service, Step, drain


def test_a_listener_that_raises_closes_the_service_first() -> None:
    closed = []

    def service() -> Service[None]:
        try:
            yield Step("one")
        finally:
            closed.append(True)

    def hear(_event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        drain(service(), hear)
    # The traceback holds the generator's frame, and would have kept an unclosed generator open.
    assert closed and caught.tb is not None
