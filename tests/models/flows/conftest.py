from __future__ import annotations


def pytest_generate_tests(metafunc) -> None:
    if "case" in metafunc.fixturenames and hasattr(metafunc.cls, "cases"):
        metafunc.parametrize("case", metafunc.cls.cases)
