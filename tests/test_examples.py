"""The examples in docstrings run, in the namespace of a user who has imported torch, fastgen and the module."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil

import pytest
import torch

import fastgen
from tests.interop.peers import import_peer

PEERS = ("nflows", "normflows", "zuko", "FrEIA")
"""Libraries that modules of ``fastgen.interop``, named after them, import; the dev extra installs them."""


def is_of_missing_peer(name: str) -> bool:
    module = name.removeprefix("fastgen.interop.")
    return any(module.startswith(peer.lower()) and importlib.util.find_spec(peer) is None for peer in PEERS)


def examples() -> list[doctest.DocTest]:
    names = [m.name for m in pkgutil.walk_packages(fastgen.__path__, "fastgen.") if not m.name.endswith("__main__")]
    finder = doctest.DocTestFinder()
    found = []
    for name in names:
        if name.startswith("fastgen.triton_kernels") or name == "fastgen._C" or is_of_missing_peer(name):
            continue
        module = importlib.import_module(name)
        found += finder.find(module, extraglobs={"torch": torch, "fastgen": fastgen})
    return [test for test in found if test.examples]


@pytest.mark.parametrize("test", examples(), ids=lambda test: test.name.removeprefix("fastgen."))
def test_it_runs(test: doctest.DocTest, tmp_path, monkeypatch):
    if test.name.startswith("fastgen.interop.accelerate"):
        import_peer("nflows")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not result.failed, "".join(said)
