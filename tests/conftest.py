from __future__ import annotations

import hypothesis
import pytest
import torch

import fastgen

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "fastgen",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("fastgen")


@pytest.fixture(autouse=True)
def poisoned_empty():
    """Fresh floating-point memory is NaN (and integers are at their extreme), so that a value nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what needs a GPU where there is none, and skips what needs the extension where it does not load."""
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("gpu")])
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
    for item in items:
        if item.get_closest_marker("needs_extension") and fastgen.extension_error:
            item.add_marker(pytest.mark.skip(reason=f"no compiled extension: {fastgen.extension_error}"))
