from __future__ import annotations

from itertools import islice


def pytest_generate_tests(metafunc) -> None:
    """Hands a law every case of the model, or those with a context, or (what the base class does) one case alone."""
    cases = getattr(metafunc.cls, "cases", None)
    if cases is None:
        return
    chosen = {
        "case": list(cases),
        "conditional_case": [name for name, config in cases.items() if config.get("classes") or config.get("vector")],
        "one_case": list(islice(cases, 1)),
    }
    for fixture, names in chosen.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, names)
