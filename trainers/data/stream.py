"""A stream of episodes made by worker processes (or inline), in a fixed order.

An episode is a trajectory with everything needed to see it: the blocks of its world, or ready frames. Episode i is a
pure function of the run's seed and i; workers only change when it arrives.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Episodes:
    """One or more trajectories through one world (or one video clip).

    Attributes:
        key: World seed or clip number.
        actions: float32 [n, L, 25]; entry t led to frame t.
        poses: float64 [n, L, 5].
        blocks: uint8 [X, Z, Y] of the world, or None.
        frames: uint8 [n, L, H, W, 3], or None where `blocks` are given.
        edits: int32 [E, 5] of each trajectory, rows (t, x, z, y, block): frame t is the first to show the change; None
            where no trajectory changes its world.
    """

    key: int
    actions: NDArray[np.float32]
    poses: NDArray[np.float64]
    blocks: NDArray[np.uint8] | None = None
    frames: NDArray[np.uint8] | None = None
    edits: list[NDArray[np.int32]] | None = None


Job = Callable[[int], list[Episodes]]


def _start_worker() -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(1)


class EpisodeStream:
    """Runs jobs 0, 1, 2, ... ahead of need and hands out their episodes in order.

    Args:
        job: Picklable; job number -> episodes.
        workers: Processes; 0 runs jobs in this process when asked.
        first: Number of the first job (a resumed run continues behind the jobs it has used).
        stride: Job numbers grow by this (ranks of a distributed run interleave).
        ahead: Jobs under way or waiting at most, per worker.
        urgent: Job numbers to run before all others; their episodes come from `urgent_results`.
    """

    def __init__(
        self, job: Job, workers: int, first: int = 0, stride: int = 1, ahead: int = 3, urgent: list[int] | None = None
    ) -> None:
        self._job, self._stride = job, stride
        self._submit_next = self.next_job = first
        self._ready: deque[Episodes] = deque()
        self._pending: deque[Future[list[Episodes]]] = deque()
        self._depth = workers * ahead
        self._urgent_numbers = urgent or []
        self._executor: ProcessPoolExecutor | None = None
        if workers > 0:
            # Workers inherit the environment: one thread each, or they fight over the cores.
            kept = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
            os.environ.update(dict.fromkeys(kept, "1"))
            self._executor = ProcessPoolExecutor(
                workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
            )
            self._urgent = [self._executor.submit(job, number) for number in self._urgent_numbers]
            self._fill()
            for name, value in kept.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value

    def _fill(self) -> None:
        assert self._executor is not None
        while len(self._pending) < self._depth:
            self._pending.append(self._executor.submit(self._job, self._submit_next))
            self._submit_next += self._stride

    def urgent_results(self) -> list[Episodes]:
        """Wait for the urgent jobs and return their episodes."""
        if self._executor is None:
            return [e for number in self._urgent_numbers for e in self._job(number)]
        return [e for future in self._urgent for e in future.result()]

    def poll(self) -> Episodes | None:
        """The next episodes if they are ready now (inline: always), else None."""
        if not self._ready and self._executor is not None and not self._pending[0].done():
            return None
        return self.get()

    def get(self) -> Episodes:
        """The next episodes, waiting for them.

        Raises:
            Exception: Whatever a job raised.
        """
        while not self._ready:
            if self._executor is None:
                self._ready.extend(self._job(self.next_job))
            else:
                self._ready.extend(self._pending.popleft().result())
                self._fill()
            self.next_job += self._stride
        return self._ready.popleft()

    def close(self) -> None:
        """Stop the workers; jobs under way are abandoned."""
        if self._executor is not None:
            processes = list((self._executor._processes or {}).values())
            self._executor.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            self._executor = None
