"""Workers that are told to end finish what they do, or give it back.

Batch systems and Kubernetes send SIGTERM some time before they kill. Dask's own worker ends a task
within seconds then, and its scheduler takes the task for one that may have killed its worker. With

    dask worker --preload densebatch.workers.leave --preload-nanny densebatch.workers.leave ...

a worker takes no more tasks when it gets SIGTERM, has 20 s to finish those under way, gives back
what is left, and ends. Who waited for it has no task to blame.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

# Slurm and Kubernetes kill 30 s after SIGTERM unless they are told otherwise.
_FINISH_S = 20.0
_POLL_S = 0.05

_nannies: list[Any] = []


async def dask_setup(server: Any) -> None:  # noqa: ANN401
    """Heed SIGTERM; called by Dask in the process of a worker, and in that of its nanny.

    Parameters
    ----------
    server
        The `distributed.Worker` or `distributed.Nanny`.
    """
    from distributed import Nanny

    if threading.current_thread() is not threading.main_thread():
        return  # of a program that has workers in its threads, whose own signals these are
    if isinstance(server, Nanny):
        _nannies.append(server)
        signal.signal(signal.SIGTERM, _pass_on)
        return
    loop = asyncio.get_running_loop()
    leaving: list[asyncio.Task[None]] = []

    def begin() -> None:
        if not leaving:
            leaving.append(loop.create_task(_leave(server)))

    signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(begin))


def _pass_on(*_: Any) -> None:  # noqa: ANN401
    """Let the workers leave; a nanny ends with its worker, and the command with its nannies."""
    for nanny in _nannies:
        if nanny.process is not None and nanny.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.process.pid, signal.SIGTERM)


async def _leave(worker: Any) -> None:  # noqa: ANN401
    from distributed import Status

    worker.status = Status.closing_gracefully  # the scheduler hears it and sends no more tasks
    deadline = time.monotonic() + _FINISH_S
    # Results are fetched within moments, by whoever waits for them.
    while (worker.state.executing_count or worker.data) and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_S)
    try:
        with suppress(OSError):  # where the scheduler is gone, nobody is there to take them
            await worker.scheduler.retire_workers(
                workers=[worker.address],
                close_workers=False,
                remove=True,
                stimulus_id=f"densebatch-leave-{time.time()}",
            )
    finally:
        await worker.close(reason="densebatch-leave")
