"""The processes that train one agent together, called ranks: how they meet, what they exchange, how they end.

`torchrun --nproc-per-node N script.py` starts N of them. A process by itself is one rank, and exchanges nothing.
docs/scaling.md says what an agent makes of it. The ranks of a group trust one another: what they exchange is pickled.
"""

from __future__ import annotations

import atexit
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_gym.files import StoppedError

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others at a meeting, in a group that is made here."""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun says to each process."""
PEOPLE = timedelta(days=7)
"""How long ranks wait for what rank 0 asks of people."""
FAILED = "failed"
LOST = "lost"
SAID = "said"
LOOKS = 0.2
"""Seconds between two looks at whether rank 0 is done with work that it does alone."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class RankEndedError(SystemExit):
    """Another rank has failed and said why: this one ends with status 1, and says nothing."""


class Ranks:
    """This process among those that train one agent together.

    Each method but `fail` is a meeting: every rank comes to it, in the same order. `what` names it in error messages.

    Args:
        rank: the number of this process, from 0.
        size: how many there are.
        notes: a store that all of them read, where each says where it is; None for none.
        made_here: whether the process group was made by `ranks()`.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, notes: dist.Store | None = None, *, made_here: bool = False
    ) -> None:
        self.rank = rank
        self.size = size
        self.made_here = made_here
        self.parted = False
        """Whether a rank has failed, so that there are no more meetings."""
        self.waited = 0.0
        """Seconds in meetings so far, most of them waiting."""
        self._notes = notes
        self._meetings = 0
        self._table: tuple[int, Tensor | None] | None = None  # the memory that `add_up` shares, by its width

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes files, logs and prints."""
        return self.rank == 0

    def gather(self, value: Any, what: str) -> list[Any]:
        """The values of all ranks, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.meeting(what):
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any, what: str) -> Any:
        """The value of rank 0."""
        if self.size == 1:
            return value
        values = [value]
        with self.meeting(what):
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def any(self, flag: bool, what: str) -> bool:
        """Whether the flag is set on any rank."""
        return any(self.gather(flag, what))

    def spread(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], what: str
    ) -> list[Result]:
        """What the work makes of each item, in their order; each rank does it for every N-th, and gets all.

        Args:
            items: the same on all ranks.
            work: gives as many results as it is given items; it is not asked about none.
            what: what is made, for error messages.
        """
        own = items[self.rank :: self.size]
        parts = self.gather(list(work(own)) if len(own) else [], what)
        return [parts[i % self.size][i // self.size] for i in range(len(items))]

    def from_first(self, work: Callable[[], Result], what: str, *, within: timedelta = TIMEOUT) -> Result:
        """What the work gives on rank 0, which alone does it; the others wait so long, and learn where it fails.

        A group that a script has made has no store for the waiting, and waits as long as it does at any meeting.

        Raises:
            StoppedError: rank 0 was not done in time. The message names what was waited for.
        """
        if self.size == 1:
            return work()
        result: Any = None
        done = f"done {self._meetings}"
        if self.leads:
            try:
                result = work()
            except BaseException as error:
                self.fail(error)
                raise
            if self._notes is not None:
                self._notes.set(done, "")
        elif self._notes is not None:
            self._wait_for(done, what, within)
        return self.broadcast(result, what)

    def _wait_for(self, key: str, what: str, within: timedelta) -> None:
        """Wait until rank 0 has noted this; signals are heeded meanwhile."""
        assert self._notes is not None
        started = time.perf_counter()
        try:
            while not self._notes.check([key]):
                if self._why() is not None:
                    raise RuntimeError("rank 0 failed")
                if time.perf_counter() - started > within.total_seconds():
                    late = StoppedError(f"expected rank 0 to be done with {what} within {within}, got no word of it")
                    self.fail(late)
                    raise late
                time.sleep(LOOKS)
        except StoppedError:
            raise
        except RuntimeError as error:  # also where the store has gone with the rank that held it
            self._end(what, error, time.perf_counter() - started)
        finally:
            self.waited += time.perf_counter() - started

    def own_seed(self, seed: int) -> int:
        """The seed on rank 0; on each other rank another one that follows from it."""
        return seed if self.leads else int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0])

    def add_up(self, tensors: Sequence[Tensor], what: str) -> None:
        """Put the sums over the ranks in place of tensors of float32; every rank gets the same bits.

        They travel as one: through memory that the ranks share, on the CPUs of one machine, else by `all_reduce`.
        """
        if self.size == 1:
            return
        rows = [tensor.reshape(-1) for tensor in tensors]
        with self.meeting(what), torch.no_grad():
            table = self._shared(sum(map(len, rows))) if all(row.device.type == "cpu" for row in rows) else None
            if table is None:
                flat = torch.cat(rows)  # (n,)
                dist.all_reduce(flat)
            else:
                torch.cat(rows, out=table[self.rank])
                dist.all_reduce(torch.zeros(1))  # all have written theirs, and read the sums of the last time
                *each, flat = table.tensor_split(self.size, dim=1)[self.rank]  # (n / size,) each
                torch.add(each[0], each[1], out=flat)
                for other in each[2:]:
                    flat += other
                dist.all_reduce(torch.zeros(1))
                flat = table[-1]
            for tensor, summed in zip(tensors, flat.split([len(row) for row in rows]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def _shared(self, count: int) -> Tensor | None:
        """A row for each rank and one for the sum, (size + 1, count) float32, in memory of all; None if not all see it.

        Memory that was made before is used again as long as `count` stays.
        """
        if self._table is None or self._table[0] != count:
            path = ""
            shape = (self.size + 1, count)
            if self.leads:
                with suppress(OSError):  # no such folder, or too little memory
                    descriptor, path = tempfile.mkstemp(prefix="rlhf_gym.", dir="/dev/shm")
                    try:
                        os.posix_fallocate(descriptor, 0, 4 * shape[0] * shape[1])
                    except OSError:
                        os.unlink(path)
                        raise
                    finally:
                        os.close(descriptor)
            paths = [path]
            dist.broadcast_object_list(paths, src=0)
            seen = torch.tensor(float(os.path.isfile(paths[0])))
            table = None
            if seen:
                numbers = torch.from_file(paths[0], shared=True, size=shape[0] * shape[1], dtype=torch.float32)
                table = numbers.view(shape)
            dist.all_reduce(seen)
            if path and os.path.isfile(path):
                os.unlink(path)  # who has opened it keeps it
            self._table = count, table if seen == self.size else None
        return self._table[1]

    def copy_from_first(self, tensors: Iterable[Tensor], what: str) -> None:
        """Put rank 0's numbers in place of these tensors'."""
        if self.size == 1:
            return
        with self.meeting(what), torch.no_grad():
            for tensor in tensors:
                sent = tensor.detach().contiguous()
                dist.broadcast(sent, src=0)
                tensor.copy_(sent)

    def meet(self, what: str) -> None:
        """Wait until every rank has come."""
        self.gather(None, what)

    # -- the end ----------------------------------------------------------------------------------------------------

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Whatever is raised inside on this rank ends the meetings of all, and the others learn why.

        A `FloatingPointError` does not: numbers that are not finite are the same on all ranks, and all raise it.
        """
        try:
            yield
        except FloatingPointError:
            raise
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Leave the group because of this error, and note it for the others."""
        if self.size == 1 or self.parted:
            return
        self.parted = True
        error.add_note(f"(raised on rank {self.rank} of {self.size}; the others end as well)")
        try:
            if self._notes is not None and not self._notes.check([FAILED]):
                self._notes.set(FAILED, f"rank {self.rank} raised {type(error).__name__}: {error}")
        except RuntimeError:
            pass  # the store has gone with the rank that held it
        if self.made_here:
            dist.destroy_process_group()  # the others wait no longer

    def speaks(self) -> bool:
        """Whether this rank is the first to ask, and so the one to tell of an error that others may have met too."""
        try:
            return self.size == 1 or self._notes is None or self._notes.add(SAID, 1) == 1
        except RuntimeError:
            return True  # the store has gone with the rank that held it

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """What is exchanged inside by torch.distributed itself; nothing else, as its errors are read as a lost rank."""
        if self.parted:
            raise StoppedError(
                f"expected all {self.size} ranks at {what}, but they have parted: {self._why() or 'one failed'}"
            )
        self._meetings += 1
        started = time.perf_counter()
        try:
            if self._notes is not None:
                self._notes.set(f"at {self.rank}", f"{self._meetings} {what}")
            yield
        except RuntimeError as error:  # what torch.distributed raises, whatever its backend
            self._end(what, error, time.perf_counter() - started)
        finally:
            self.waited += time.perf_counter() - started

    def _end(self, what: str, error: RuntimeError, seconds: float) -> None:
        """Raise what this rank has to say of a meeting that did not come about: nothing, where another has said it."""
        self.parted = True
        try:
            said = self._why() is not None or (self._notes is not None and self._notes.add(LOST, 1) > 1)
            behind = self._behind()
        except RuntimeError:
            said = False
            behind = []
        if said:
            raise RankEndedError(1) from error
        who = f"did not find {', '.join(behind)}" if behind else "lost the connection to another"
        raise StoppedError(
            f"expected all {self.size} ranks at {what}; rank {self.rank} waited {seconds:.1f} s and {who} "
            f"({str(error).splitlines()[0][:200]}): what that rank or the launcher said last tells why. Go on from the "
            "last checkpoint"
        ) from error

    def _why(self) -> str | None:
        """What the first rank to fail has noted."""
        if self._notes is None or not self._notes.check([FAILED]):
            return None
        return self._notes.get(FAILED).decode()

    def _behind(self) -> list[str]:
        """The ranks that have not come to this meeting, and where they were last."""
        found = []
        for rank in range(self.size) if self._notes is not None else ():
            last = self._notes.get(f"at {rank}").decode() if self._notes.check([f"at {rank}"]) else "0 the start"  # type: ignore[union-attr]
            number, _, what = last.partition(" ")
            if int(number) < self._meetings:
                found.append(f"rank {rank}, which was last seen at {what}")
        return found


_joined: Ranks | None = None


def ranks() -> Ranks:
    """This process among those that train one agent together.

    There is one rank, unless `torch.distributed` is initialised, or the environment has the variables of torchrun. With
    these a group is made at the first call: gloo, and NCCL beside it where each process has a GPU of its own, which
    becomes the current device.
    """
    global _joined
    if _joined is not None and (_joined.made_here or dist.is_initialized()):
        return _joined
    if dist.is_available() and dist.is_initialized():
        _joined = Ranks(dist.get_rank(), dist.get_world_size())
    elif all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1:
        _joined = _join()
    else:
        return Ranks()
    return _joined


def _join() -> Ranks:
    """Make the group that torchrun's variables describe."""
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % count)
        if int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])) <= count:
            backend = "cpu:gloo,cuda:nccl"
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=TIMEOUT
    )
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
    return Ranks(rank, size, dist.PrefixStore("rlhf_gym", store), made_here=True)
