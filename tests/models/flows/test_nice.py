from __future__ import annotations

from tests.models.flows.laws import CONTEXT, FlowLaws


class TestNICE(FlowLaws):
    name = "nice"
    small = {"levels": 0, "hidden": 16}
    cases = {
        "vector": small | {"event_shape": (5,)},
        "image": {"event_shape": (1, 3, 3), "hidden": 16},
        "context": small | CONTEXT | {"event_shape": (4,), "base": "normal"},
    }
    plane = small
    discrete = {"event_shape": (1, 4, 4), "hidden": 16} | CONTEXT
