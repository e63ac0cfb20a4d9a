"""The workers of a Dask scheduler as they come and go, and which of them may do tasks.

Those of a running scheduler are checked when they join. A run asks for the state of things every
now and then (`WorkerPool.look`), which also ends it when there is nothing left to wait for.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from densebatch.base.errors import DensebatchError, InputError
from densebatch.base.log import log_event
from densebatch.workers.check import Lack, ask, join_lacks
from densebatch.workers.connect import CONTINUES, GONE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from densebatch.workers.check import Requirements
    from densebatch.workers.scheduler import Scheduler

log = logging.getLogger(__name__)

_LOOK_S = 1.0  # between two questions to the scheduler
_ANSWER_S = 10.0  # for the scheduler to tell of its workers
_CHECK_S = 20.0  # for a worker to be checked
_AGAIN_S = 3.0  # until a worker that lacks what may come is asked again
_TELL_S = 3.0  # of waiting, until the user is told
# How long workers that cannot work are left to be joined by others, or to see what they lack: a
# network file system may take half a minute to show what another machine has written.
_UNABLE_S = 5.0
_UNABLE_YET_S = 40.0
_PAUSED_S = 30.0  # until what waits at a paused worker is given to another
_WAKE_S = 2.0  # an idle worker of such a cluster is ended within seconds
_POLL_S, _POLL_NONE_S = 0.05, 0.3
_CAST_OFF = "scheduler-remove-worker"  # is Dask's reason of a worker that was given up


@dataclass
class _Member:
    """A worker of the scheduler.

    Attributes
    ----------
    name : it is called to the user
    threads : tasks that it does at once
    limit : its memory limit in bytes; 0 for none
    asked_at : when its check began
    lacks : what it lacks; None as long as that is not known
    paused_at : since when it takes no task because of its memory; None if it does
    check : asks it, or did
    """

    name: str
    threads: int
    limit: int
    asked_at: float
    lacks: list[Lack] | None = None
    paused_at: float | None = None
    check: threading.Thread | None = None

    @property
    def is_able(self) -> bool:
        """Whether it has all that it needs."""
        return self.lacks == []

    @property
    def takes_tasks(self) -> bool:
        """Whether it does what it is given, too."""
        return self.is_able and self.paused_at is None


class WorkerPool:
    """The workers of a scheduler.

    Parameters
    ----------
    client
        Of the scheduler.
    scheduler
        As the user names it; None for workers of this machine, which this process has started.
    requirements
        What its workers must have; None for workers of this machine, which are not asked.
    note
        Is told, a sentence at a time, what the user should know.

    Attributes
    ----------
    generation : grows whenever workers have gone
    retired : addresses of workers that have gone because they were told to, as at the end of their
        time; what they had is not to blame
    """

    def __init__(
        self,
        client: Any,  # noqa: ANN401
        scheduler: Scheduler | None = None,
        requirements: Requirements | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._client = client
        self._scheduler = scheduler
        self._requirements = requirements
        self._note = note
        self._members: dict[str, _Member] = {}
        self._told: set[str] = set()
        self._told_waiting: str | None = None
        self._had_workers = False
        self._looked_at = -_LOOK_S
        self._waiting_since: float | None = None
        self._gone_since: float | None = None  # not while workers are those of this machine
        self._wake: Any = None
        self.generation = 0
        self.retired: set[str] = set()

    @property
    def is_checked(self) -> bool:
        """Whether only workers that were checked may do tasks."""
        return self._requirements is not None

    @property
    def able(self) -> list[str]:
        """Addresses of the workers that may do tasks and take them.

        A scheduler that is gone has none, because it will come back with others.
        """
        if self._gone_since is not None:
            return []
        return [address for address, member in self._members.items() if member.takes_tasks]

    @property
    def present(self) -> set[str]:
        """Addresses of all workers that there are."""
        return set(self._members)

    @property
    def stuck(self) -> list[str]:
        """Addresses of workers that have been paused for so long that nothing should wait there."""
        now = time.monotonic()
        return [
            address
            for address, member in self._members.items()
            if member.paused_at is not None and now - member.paused_at > _PAUSED_S
        ]

    @property
    def threads(self) -> int:
        """Tasks that all able workers do at once."""
        return sum(self._members[address].threads for address in self.able)

    def change(self, requirements: Requirements) -> None:
        """Ask all workers again, for more."""
        self._requirements = requirements
        for address, member in self._members.items():
            self._begin_check(address, member)

    def wait(self) -> None:
        """Wait until all workers that there are have been checked and one of them is able.

        Raises
        ------
        InputError, DensebatchError
            As `look`.
        """
        while not self._is_settled() or not self.able:
            self.look(at_once=True)
            time.sleep(_POLL_S if self._members else _POLL_NONE_S)

    def check_present(self) -> None:
        """Refuse workers that are there and cannot work; without any there is nothing to refuse.

        Raises
        ------
        InputError
            As `look`.
        """
        self.look(at_once=True)
        while self._members and (not self._is_settled() or not self.able):
            if self._is_settled() and all(m.is_able for m in self._members.values()):
                return  # paused, which may pass until they are needed
            time.sleep(_POLL_S)
            self.look(at_once=True)

    def look(self, *, at_once: bool = False) -> None:
        """Take note of workers that have come and gone, once a second at most.

        Parameters
        ----------
        at_once
            Look even if that was done a moment ago.

        Raises
        ------
        InputError
            If the workers that are there cannot work.
        DensebatchError
            If there have been none for as long as the user is patient, or the scheduler is gone.
        """
        now = time.monotonic()
        if not at_once and now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        infos = self._ask_scheduler(now)
        if infos is None:
            return
        self._update(infos, now)
        if self.is_checked:
            self._tell_unable()
            self._judge(now)

    def _is_settled(self) -> bool:
        return all(member.lacks is not None for member in self._members.values())

    def _ask_scheduler(self, now: float) -> dict[str, dict[str, Any]] | None:
        """Facts of all workers; None as long as the scheduler does not answer."""
        if self._client.status == "running":
            try:
                identity = self._client.sync(
                    self._client.scheduler.identity, callback_timeout=_ANSWER_S
                )
            except (OSError, TimeoutError):
                pass
            else:
                self._gone_since = None
                workers: dict[str, dict[str, Any]] = identity["workers"]
                return workers
        if self._scheduler is None:
            return None
        if self._gone_since is None:
            self._gone_since = now
            self._note(
                f"scheduler {self._scheduler}: is gone; waiting {GONE_S:.0f} s for it to come back"
            )
            log_event(log, "scheduler gone", logging.WARNING, scheduler=str(self._scheduler))
        if self._client.status == "closed" or now - self._gone_since > GONE_S:
            raise DensebatchError(
                f"scheduler {self._scheduler}: is gone and did not come back within "
                f"{GONE_S:.0f} s; {CONTINUES} when it runs"
            )
        return None

    def _update(self, infos: dict[str, dict[str, Any]], now: float) -> None:
        lost = sorted(self._members.keys() - infos.keys())
        for address in lost:
            del self._members[address]
            if self._has_retired(address):
                self.retired.add(address)
            log_event(
                log, "worker lost", worker=address, workers_left=len(infos),
                retired=address in self.retired,
            )  # fmt: skip
        self.generation += bool(lost)
        for address, info in infos.items():
            member = self._members.get(address)
            if member is None:
                member = _Member(
                    _name_worker(address, info), info["nthreads"], info["memory_limit"] or 0, now
                )
                self._members[address] = member
                self._begin_check(address, member)
            elif member.lacks is None and now - member.asked_at > _CHECK_S:
                member.lacks = [Lack(f"did not answer within {_CHECK_S:.0f} s", may_pass=True)]
            elif (
                member.lacks
                and all(lack.may_pass for lack in member.lacks)
                and now - member.asked_at > _AGAIN_S
                and not (member.check is not None and member.check.is_alive())
            ):
                self._begin_check(address, member, keep=True)
            if info["status"] != "paused":
                member.paused_at = None
            elif member.paused_at is None:
                member.paused_at = now
        self._had_workers = self._had_workers or bool(infos)

    def _has_retired(self, address: str) -> bool:
        """Whether a worker that is gone was told to go, as the scheduler has noted."""
        if not self.is_checked:
            return False
        try:
            events = self._client.sync(
                self._client.scheduler.events, topic=address, callback_timeout=_ANSWER_S
            )
        except (OSError, TimeoutError):
            return False
        return any(
            (event.get("action") == "remove-worker" and event.get("expected"))
            # A worker that lost touch with its scheduler is told so, and closes too.
            or (event.get("action") == "closing-worker" and event.get("reason") != _CAST_OFF)
            for _, event in events
            if isinstance(event, dict)
        )

    def _begin_check(self, address: str, member: _Member, *, keep: bool = False) -> None:
        """Ask a worker what it lacks, in a thread: a worker that hangs keeps nobody else."""
        needs = self._requirements
        if needs is None:
            member.lacks = []
            return
        if not keep:
            member.lacks = None
        member.asked_at = time.monotonic()

        def check() -> None:
            lacks = ask(self._client, address, member.threads, member.limit, needs)
            if needs is self._requirements:
                member.lacks = lacks

        member.check = threading.Thread(target=check, name="densebatch-check", daemon=True)
        member.check.start()

    def _tell_unable(self) -> None:
        """Tell, once for each reason, of workers that cannot work where others can."""
        if not self.able:
            return
        by_reason: dict[str, list[str]] = {}
        for member in self._members.values():
            if member.lacks:
                by_reason.setdefault(join_lacks(member.lacks), []).append(member.name)
        for reason, names in by_reason.items():
            if reason in self._told:
                continue
            self._told.add(reason)
            more = f" and {len(names) - 1} more take" if len(names) > 1 else " takes"
            self._note(f"worker {names[0]}{more} no part: {reason}")
            log_event(log, "worker refused", logging.WARNING, worker=names[0], reason=reason)

    def _judge(self, now: float) -> None:
        """End the run if there is nothing left to wait for; tell what is waited for."""
        if self.able:
            self._waiting_since = None
            self._told_waiting = None
            self._release_wake()
            return
        if self._waiting_since is None:
            self._waiting_since = now
        waited = now - self._waiting_since
        assert self._scheduler is not None
        if not self._members:
            self._keep_awake()
            was = "all its workers are lost" if self._had_workers else "no worker has joined it"
            self._wait_on(was, waited)
        elif not any(member.is_able for member in self._members.values()):
            self._refuse_unable(waited)
        else:
            paused = [member for member in self._members.values() if member.paused_at is not None]
            limits = sorted({member.limit // 10**6 for member in paused})
            self._wait_on(
                f"all {len(paused)} workers that can work are paused, because they hold more "
                f"memory than their limit of {limits[0]} MB lets them",
                waited,
            )

    def _refuse_unable(self, waited: float) -> None:
        members = list(self._members.values())
        lacking = [member for member in members if member.lacks]
        if len(lacking) < len(members):
            return  # others are being asked, which takes `_CHECK_S` at most
        can_pass = any(all(lack.may_pass for lack in member.lacks or ()) for member in lacking)
        if waited < (_UNABLE_YET_S if can_pass else _UNABLE_S):
            return
        first = lacking[0]
        others = f" (none of {len(members)} workers can work)" if len(members) > 1 else ""
        raise InputError(
            f"scheduler {self._scheduler}: worker {first.name} {join_lacks(first.lacks or ())}"
            f"{others}"
        )

    def _wait_on(self, reason: str, waited: float) -> None:
        assert self._scheduler is not None
        patience = self._scheduler.patience_s
        if waited >= patience:
            raise DensebatchError(
                f"scheduler {self._scheduler}: {reason}, for {patience:.0f} s; {CONTINUES} when "
                "it has workers (dask worker ADDRESS), and waits longer with --patience"
            )
        if waited >= _TELL_S and self._told_waiting != reason:
            self._told_waiting = reason
            self._note(f"scheduler {self._scheduler}: {reason}; waiting for up to {patience:.0f} s")
            log_event(log, "waiting for workers", logging.WARNING, reason=reason)

    def _keep_awake(self) -> None:
        """Hold a small task in the scheduler: some clusters start workers when there are tasks."""
        if self._wake is None or self._wake.status != "pending":
            self._release_wake()
            self._wake = self._client.submit(time.sleep, _WAKE_S, pure=False)

    def _release_wake(self) -> None:
        if self._wake is not None and self._wake.status != "pending":
            self._wake.release()
            self._wake = None

    def close(self) -> None:
        """Leave nothing in the scheduler."""
        if self._wake is not None:
            self._wake.release()
            self._wake = None


def _name_worker(address: str, info: dict[str, Any]) -> str:
    """What a user knows a worker by: its address, and its name if it has one of its own."""
    name = str(info.get("name") or address)
    return address if name == address else f"{name} at {address}"
