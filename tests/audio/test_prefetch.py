"""Threads that read ahead: order, bound and errors."""

import threading
import time

import numpy as np
import pytest

from mtslvr_hf.audio.prefetch import ReadAhead


class TestReadAhead:
    @staticmethod
    def count_up(number, item):
        """As many results as the item says, some of them late."""
        generator = np.random.default_rng(number)
        for result in range(item):
            if generator.random() < 0.2:
                time.sleep(0.001)
            yield result

    @pytest.mark.parametrize("num_workers", [0, 1, 2, 7])
    @pytest.mark.parametrize("limit", [1, 4])
    def test_order(self, num_workers, limit):
        items = np.random.default_rng(0).integers(0, 9, 40).tolist()
        results = list(ReadAhead(items, self.count_up, num_workers, limit))
        assert results == [(number, result) for number, item in enumerate(items) for result in range(item)]

    def test_bound(self):
        done = []

        def work(number, item):
            for result in range(item):
                done.append((number, result))
                yield result

        results = iter(ReadAhead([100, 100, 100, 100], work, 3, 5))
        next(results)
        time.sleep(0.1)
        assert len(done) <= 1 + 2 * 5 + 3  # used, waiting, in hand
        results.close()

    def test_errors_of_the_work(self):
        def work(number, item):
            yield item
            if item == 3:
                raise ZeroDivisionError("three")

        results = iter(ReadAhead(range(9), work, 4, 2))
        assert [next(results) for _ in range(4)] == [(n, n) for n in range(4)]
        with pytest.raises(ZeroDivisionError, match="three"):
            next(results)

    def test_threads_are_prepared_before_they_work(self):
        prepared, seen = set(), []

        def work(number, item):
            seen.append(threading.get_ident() in prepared)
            yield item

        ahead = ReadAhead(range(9), work, 3, 2, prepare=lambda: prepared.add(threading.get_ident()))
        ahead.start()
        assert len(prepared) == 3
        assert len(list(ahead)) == 9 and all(seen)

    def test_stop_ends_an_iteration_that_waits_in_another_thread(self):
        comes, results = threading.Event(), []
        ahead = ReadAhead([comes], lambda number, item: iter([item.wait(20)]), 1, 2)
        reader = threading.Thread(target=lambda: results.extend(ahead))
        reader.start()
        ahead.start()
        ahead.stop()
        reader.join(10)
        assert not reader.is_alive() and not results
        comes.set()
