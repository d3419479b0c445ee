"""What waits together is answered together."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'service')")

from bundle.batching import Batcher, QueueFull, giving_way


class TestBatcher:
    def test_what_waits_together_is_answered_together(self):
        sizes, go = [], threading.Event()

        def work(items):
            go.wait(10)
            sizes.append(len(items))
            return [item * 2 for item in items]

        batcher = Batcher(work, max_items=3)
        futures = [batcher.submit(k) for k in range(7)]
        go.set()
        assert [future.result(10) for future in futures] == [0, 2, 4, 6, 8, 10, 12]
        batcher.close()
        assert sum(sizes) == 7
        assert max(sizes) == 3

    def test_a_full_queue_refuses(self):
        go = threading.Event()
        batcher = Batcher(lambda items: [go.wait(10) for _ in items], max_items=1, max_waiting=2)
        accepted = []
        with pytest.raises(QueueFull, match="wait already"):
            accepted.extend(batcher.submit(0) for _ in range(4))
        go.set()
        batcher.close()

    def test_closing_answers_what_waits_and_refuses_more(self):
        batcher = Batcher(lambda items: items, max_items=2)
        futures = [batcher.submit(k) for k in range(5)]
        batcher.close()
        assert [future.result(0) for future in futures] == [0, 1, 2, 3, 4]
        with pytest.raises(QueueFull, match="shutting down"):
            batcher.submit(1)

    def test_closing_without_answers_cancels_what_waits(self):
        go, started = threading.Event(), threading.Event()

        def work(items):
            started.set()
            go.wait(10)
            return items

        batcher = Batcher(work, max_items=1)
        futures = [batcher.submit(k) for k in range(4)]
        started.wait(10)
        closing = threading.Thread(target=batcher.close, args=(False,))
        closing.start()
        while not all(future.cancelled() for future in futures[1:]):
            time.sleep(0.01)
        go.set()
        closing.join()
        assert futures[0].result(10) == 0

    def test_how_long_to_wait_follows_from_how_long_it_takes(self):
        go, started = threading.Event(), threading.Event()

        def work(items):
            started.set()
            return [go.wait(10) for _ in items]

        batcher = Batcher(work, max_items=1, max_waiting=3)
        batcher.submit(0)
        started.wait(10)
        batcher.seconds = 7.0
        for _ in range(3):
            batcher.submit(0)
        with pytest.raises(QueueFull) as refused:
            batcher.submit(0)
        assert refused.value.retry_after_s == 21
        go.set()
        batcher.close()

    @pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
    def test_a_worker_gives_way(self):
        def priority(_):
            return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        batcher = Batcher(lambda items: [priority(item) for item in items], start=giving_way(19, 1))
        assert batcher.submit(0).result(10) == 19 > priority(0) or priority(0) == 19
        batcher.close()

    def test_errors_go_to_whom_they_belong(self):
        batcher = Batcher(lambda items: [ValueError("odd") if item % 2 else item for item in items])
        futures = [batcher.submit(k) for k in range(2)]
        assert futures[0].result(10) == 0
        with pytest.raises(ValueError, match="odd"):
            futures[1].result(10)
        batcher.close()
