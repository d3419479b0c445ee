"""Concurrent requests in common passes of the network: what waits together is predicted together."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

__all__ = ["Batcher", "QueueFull"]


class QueueFull(RuntimeError):
    """More work waits than the queue holds; try again later."""


class Batcher:
    """One worker thread that takes what waits, up to a number of items, and answers each.

    Args:
        function: takes a list of inputs, returns a list of as many results, an exception standing for a failed one.
        max_items: taken at once.
        max_waiting: further ones are refused.
    """

    def __init__(self, function: Callable[[Sequence[Any]], Sequence[Any]], max_items: int = 8, max_waiting: int = 256):
        self.function, self.max_items = function, max_items
        self._queue: queue.Queue[tuple[Any, Future] | None] = queue.Queue(max_waiting)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
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
                raise QueueFull(f"{self._queue.maxsize} requests wait already; try again later") from error
        return future

    def close(self) -> None:
        """Answer what waits, then stop."""
        with self._lock:
            self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
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
        try:
            results = self.function([item for item, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
