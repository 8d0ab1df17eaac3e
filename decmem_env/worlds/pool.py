"""Worlds made ahead of time in other processes."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor

from .terrain import World, generate_world


class WorldPool:
    """Generates worlds in worker processes, in the order of their seeds, a few ahead of the reader.

    Processes are spawned, not forked, so that a pool may start after CUDA or OpenMP have: guard the
    main script with `if __name__ == "__main__"`, and use the pool in a `with` block.

    Args:
        seeds: Seeds of the worlds, possibly endless.
        workers: Processes; 0 generates in this one.
        ahead: Worlds made ahead of the reader.
    """

    def __init__(self, seeds: Iterable[int], workers: int = 2, ahead: int = 8) -> None:
        self._seeds = iter(seeds)
        self._ahead = max(ahead, 1)
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(workers, context) if workers else None
        self._pending: deque[Future[World]] = deque()

    def __enter__(self) -> WorldPool:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[World]:
        return self

    def __next__(self) -> World:
        if self._executor is None:
            return generate_world(next(self._seeds))
        while len(self._pending) < self._ahead:
            seed = next(self._seeds, None)
            if seed is None:
                break
            self._pending.append(self._executor.submit(generate_world, seed))
        if not self._pending:
            raise StopIteration
        return self._pending.popleft().result()

    def close(self) -> None:
        """Drop what is under way and end the workers."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
