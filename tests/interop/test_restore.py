"""Every library gets its own code back, whole."""

from __future__ import annotations

import importlib

import pytest

import fastgen
from fastgen.interop import PEERS
from tests.interop.parity import attributes, differing
from tests.interop.peers import import_peer


@pytest.mark.parametrize("peer", PEERS)
def test_restore_puts_every_attribute_back(peer):
    import_peer(peer)
    importlib.import_module(f"fastgen.interop.{PEERS[peer]}")
    before = attributes(peer)
    with fastgen.accelerated(peer):
        assert differing(before, attributes(peer))
        with fastgen.accelerated(peer):
            fastgen.accelerate(peer)
        assert differing(before, attributes(peer))
    assert differing(before, attributes(peer)) == []
    fastgen.restore(peer)
    assert differing(before, attributes(peer)) == []


def test_a_library_that_is_not_known_is_named():
    for function in (fastgen.accelerate, fastgen.restore):
        with pytest.raises(ValueError, match=r"peer must be one of 'nflows', 'zuko',.*, got 'flows'"):
            function("flows")
    with pytest.raises(ValueError, match=r"peer must be one of .*, got 'flows'"), fastgen.accelerated("flows"):
        pass
