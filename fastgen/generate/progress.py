"""Progress bars of long generations."""

from __future__ import annotations


def progress_bar(total: int, description: str):
    """Returns a tqdm bar over steps; raises ImportError that says what to install."""
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install fastgen-kernels[zoo]") from error
    return tqdm(total=total, unit="step", unit_scale=True, desc=description)
