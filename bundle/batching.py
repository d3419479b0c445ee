"""Queues of requests, each bounded and with one thread, so that slow requests of one kind do not block others."""

from __future__ import annotations

import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import torch

__all__ = ["Batcher", "QueueFull", "giving_way"]


class QueueFull(RuntimeError):
    """More work waits than the queue holds; try again later.

    Attributes:
        retry_after_s: seconds in which what waits is done, about.
    """

    def __init__(self, reason: str, retry_after_s: int = 2) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def giving_way(nice: int, threads: int) -> Callable[[], None]:
    """A function that lowers the priority of the thread that calls it.

    Args:
        nice: 0 to 19 (least); on Linux it holds for this thread and those that it starts, elsewhere it is not set.
        threads: that torch uses for this thread's work.
    """

    def start() -> None:
        torch.set_num_threads(threads)
        if sys.platform == "linux" and nice:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)

    return start


class Batcher:
    """One worker thread that takes what waits, up to a number of items, and answers each.

    Args:
        function: takes a list of inputs, returns a list of as many results, an exception standing for a failed one.
        max_items: taken at once.
        max_waiting: further ones are refused.
        start: called in the worker thread before its first item.
        name: of the thread.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Any]], Sequence[Any]],
        max_items: int = 8,
        max_waiting: int = 256,
        start: Callable[[], None] = lambda: None,
        name: str = "batcher",
    ):
        self.function, self.max_items, self.start = function, max_items, start
        self.seconds = 0.0  # an item takes, a moving average
        self._queue: queue.Queue[tuple[Any, Future] | None] = queue.Queue(max_waiting)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items that wait, about."""
        return self._queue.qsize()

    def submit(self, item: Any) -> Future:
        """Queue an item.

        Returns:
            its future result.

        Raises:
            QueueFull: when too many wait, or the batcher is closed.
        """
        future: Future = Future()
        with self._lock:  # nothing is queued behind the closing mark
            if self._closing.is_set():
                raise QueueFull("the service is shutting down")
            try:
                self._queue.put_nowait((item, future))
            except queue.Full as error:
                seconds = min(600, max(1, math.ceil(self.seconds * self.waiting)))
                raise QueueFull(f"{self._queue.maxsize} requests wait already; try again later", seconds) from error
        return future

    def close(self, answer: bool = True) -> None:
        """Stop, after what waits is answered, or as soon as what is under way is done; the rest is then cancelled."""
        with self._lock:
            self._closing.set()
        while not answer:
            try:
                self._queue.get_nowait()[1].cancel()  # type: ignore[index]
            except queue.Empty:
                break
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        self.start()
        while True:
            entry = self._queue.get()
            if entry is None:
                return
            batch, last = [entry], False
            while len(batch) < self.max_items and not last:
                try:
                    following = self._queue.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    last = True
                else:
                    batch.append(following)
            self._answer([(item, future) for item, future in batch if future.set_running_or_notify_cancel()])
            if last:
                return

    def _answer(self, batch: Sequence[tuple[Any, Future]]) -> None:
        if not batch:
            return
        started = time.monotonic()
        try:
            results = self.function([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        taken = (time.monotonic() - started) / len(batch)
        self.seconds = taken if not self.seconds else 0.8 * self.seconds + 0.2 * taken
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
