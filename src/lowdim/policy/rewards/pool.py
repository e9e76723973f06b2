"""A pool of processes that may hang, crash or eat memory without harm to their owner."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import IO, Any, cast

from lowdim.errors import RunError

__all__ = ["KillablePool"]

START_TIMEOUT = 120.0  # seconds until a worker must be ready; importing takes 1 to 2 on a free machine
ATTEMPTS = 2
SECRETS = (
    "TOKEN",
    "KEY",
    "SECRET",
    "PASSWORD",
    "CREDENTIAL",
)  # words in names of variables kept from workers


class KillablePool:
    """Ask questions of worker processes, each with a deadline that nothing can outlast.

    A worker is a program that writes "ready" and then answers every line of JSON with one line of JSON. One
    that does not answer in time, or ends, is killed and replaced. Its question is asked once more, after all
    others; a question that fails twice has no answer. Workers are programs of their own and not forks, so
    they hold nothing of this process: neither its memory, nor its GPU, nor its locks. After a fork the child
    starts its own. All end with this process.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    workers : int, default 2
        Processes at most; no more than there are questions.
    timeout : float, default 5.0
        Seconds for one question.
    total : float, default 120.0
        Seconds for all questions of one call; those not answered by then have no answer.

    Examples
    --------
    >>> pool = KillablePool(["sh", "-c", "echo ready; exec cat"], workers=1)
    >>> pool.ask([1, {"a": [2]}])
    [1, {'a': [2]}]
    >>> pool.close()
    """

    def __init__(
        self, command: Sequence[str], *, workers: int = 2, timeout: float = 5.0, total: float = 120.0
    ) -> None:
        self.command = list(command)
        self.workers, self.timeout, self.total = workers, timeout, total
        self.failures = 0  # questions without answer
        self.kills = 0  # workers that were replaced
        self._begin()

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._running: list[_Worker] = []
        self._lock = threading.Lock()
        self._end = weakref.finalize(self, _end_all, self._running, self._owner)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def ask(self, questions: Sequence[Any]) -> list[Any]:
        """Return the answers in the order of the questions.

        Parameters
        ----------
        questions : sequence
            JSON-ready.

        Returns
        -------
        list
            None where there is no answer.

        Raises
        ------
        RunError
            If workers end before they are ready, three times in a row.
        """
        if self._owner != os.getpid():
            self._begin()  # the workers are the parent's
        with self._lock:
            try:
                return _Round(self, questions).answers()
            finally:
                self._drop([worker for worker in self._running if worker.question is not None])

    def close(self) -> None:
        """End all workers; the next question starts new ones."""
        with self._lock:
            self._drop(list(self._running))

    def _drop(self, workers: list[_Worker]) -> None:
        for worker in workers:
            self._running.remove(worker)
            worker.kill()


class _Worker:
    """One process, and the question that it is at."""

    def __init__(self, command: list[str]) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not any(w in name.upper() for w in SECRETS)
        }
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # an interrupt at the keyboard is the owner's business
            bufsize=0,
        )
        self._asked, self._replied = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        self.question: int | None = None
        self.ready = False
        self.deadline = time.monotonic() + START_TIMEOUT
        self._received = b""

    def fileno(self) -> int:
        """Where its replies come, for a selector."""
        return self._replied.fileno()

    def send(self, number: int, question: Any, timeout: float) -> bool:
        """Hand over a question; False if the worker has ended."""
        self.question, self.deadline = number, time.monotonic() + timeout
        try:
            self._asked.write(json.dumps(question).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self) -> bytes | None:
        """Return a line, an empty one while it is not complete, None if the worker has ended."""
        piece = os.read(self.fileno(), 65536)
        if not piece:
            return None
        self._received += piece
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return b""
        self._received = rest
        return line

    def kill(self) -> None:
        """End the process, whatever it is at."""
        self.process.kill()
        for pipe in (self._asked, self._replied):
            with contextlib.suppress(OSError):
                pipe.close()
        self.process.wait()


def _end_all(workers: list[_Worker], owner: int) -> None:
    if os.getpid() == owner:
        while workers:
            workers.pop().kill()


class _Round:
    """The questions of one call."""

    def __init__(self, pool: KillablePool, questions: Sequence[Any]) -> None:
        self.pool, self.questions = pool, questions
        self.waiting = deque(range(len(questions)))
        self.failed = [0] * len(questions)
        self.found: dict[int, Any] = {}
        self.false_starts = 0
        self.until = time.monotonic() + pool.total

    def answers(self) -> list[Any]:
        with selectors.DefaultSelector() as selector:
            for worker in self.pool._running:
                selector.register(worker, selectors.EVENT_READ)
            while self.waiting or any(worker.question is not None for worker in self.pool._running):
                now = time.monotonic()
                if now >= self.until:
                    break
                self._staff(selector)
                self._hand_out(selector)
                deadlines = [worker.deadline for worker in self.pool._running if self._busy(worker)]
                for key, _ in selector.select(max(min([*deadlines, self.until]) - now, 0.0)):
                    self._listen(cast(_Worker, key.fileobj), selector)
                now = time.monotonic()
                for worker in [w for w in self.pool._running if self._busy(w) and w.deadline <= now]:
                    self._lose(worker, selector)
        self.pool.failures += len(self.questions) - len(self.found)
        return [self.found.get(number) for number in range(len(self.questions))]

    @staticmethod
    def _busy(worker: _Worker) -> bool:
        return not worker.ready or worker.question is not None

    def _staff(self, selector: selectors.BaseSelector) -> None:
        at_work = sum(worker.question is not None for worker in self.pool._running)
        wanted = min(self.pool.workers, len(self.waiting) + at_work)
        while len(self.pool._running) < wanted:
            worker = _Worker(self.pool.command)
            self.pool._running.append(worker)
            selector.register(worker, selectors.EVENT_READ)

    def _hand_out(self, selector: selectors.BaseSelector) -> None:
        for worker in [w for w in self.pool._running if not self._busy(w)]:
            if not self.waiting:
                return
            number = self.waiting.popleft()
            if not worker.send(number, self.questions[number], self.pool.timeout):
                self._lose(worker, selector)

    def _listen(self, worker: _Worker, selector: selectors.BaseSelector) -> None:
        line = worker.receive()
        if line is None:
            self._lose(worker, selector)
        elif line and not worker.ready:
            worker.ready = True
            self.false_starts = 0
        elif line and worker.question is not None:
            try:
                self.found[worker.question] = json.loads(line)
                worker.question = None
            except ValueError:  # no worker in its right mind
                self._lose(worker, selector)

    def _lose(self, worker: _Worker, selector: selectors.BaseSelector) -> None:
        """Replace a worker that hangs or has ended, and put its question last."""
        selector.unregister(worker)
        self.pool._drop([worker])
        self.pool.kills += 1
        if not worker.ready:
            self.false_starts += 1
            if self.false_starts == 3:
                raise RunError(
                    f"KillablePool: a worker ended with status {worker.process.returncode} before it was "
                    f"ready, three times. Try the command by hand: {' '.join(self.pool.command)}"
                )
        if worker.question is None:
            return
        self.failed[worker.question] += 1
        if self.failed[worker.question] < ATTEMPTS:
            self.waiting.append(worker.question)
