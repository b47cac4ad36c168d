"""Work in a forked child, which may crash or hang."""

from __future__ import annotations

import multiprocessing
import sys
import traceback
from collections.abc import Callable

PATIENCE = 120


def outcome(work: Callable[[], object]) -> str:
    """ "done", or how the child that did the work ended: an exception, a signal, or not at all."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def report() -> None:
        try:
            work()
            theirs.send("done")
        except BaseException:
            theirs.send(traceback.format_exc())
            sys.exit(1)

    child = context.Process(target=report)
    child.start()
    child.join(PATIENCE)
    if child.is_alive():
        child.kill()
        child.join()
        return "hangs"
    if ours.poll():
        return ours.recv()
    return f"killed by signal {-child.exitcode}"
