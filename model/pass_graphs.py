"""Passes replayed as CUDA graphs: one launch instead of the hundreds of a pass, which the CPU may be too slow for.

A pass of the same shapes does the same work from step to step and from chunk to chunk; what differs is data. A graph
reads it from buffers of its own, into which each pass's tensors are copied. History is read in steps of `BUCKET` frames
(limits hide what lies behind its end), so that a new graph is needed only as often as it grows by as many.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import BlockLists
from .passes import LARGE_FRAME, Plan
from .position import FrameMatrices, Positions
from .streaming import Streamer

BUCKET = 128  # frames of history
_MOST = 24  # graphs that are kept; each holds buffers for its inputs

Pass = Callable[[], Tensor | None]
Recorder = Callable[[Pass], tuple[Callable[[], None], Tensor | None]]


class _Graph(NamedTuple):
    """A recorded pass: its buffers, what was last copied into them, how to run it, and where the result lies."""

    buffers: list[Tensor]
    copied: list[Tensor]
    replay: Callable[[], None]
    result: Tensor | None


class PassGraphs:
    """Runs a streamer's passes; those that come again, by graphs.

    The first pass of a kind runs as it is (kernels are compiled and chosen then), the second one is recorded.

    Args:
        streamer: Whose passes.
        recorder: Given a pass, returns what runs it again, on the same buffers, and its result.
    """

    def __init__(self, streamer: Streamer, recorder: Recorder | None = None) -> None:
        self.streamer = streamer
        self._record = recorder or _CudaRecorder(streamer.pool.device)
        self._graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()
        self._padded: tuple[Plan, Plan] | None = None

    @torch.no_grad()
    def run(
        self,
        plan: Plan,
        latents: Tensor,
        actions: Tensor,
        keep: Tensor,
        generated: Tensor,
        view: Tensor | None,
        times: tuple[float, ...],
        where: FrameMatrices | Positions,
        forced: list[BlockLists] | None = None,
        record: list[BlockLists] | None = None,
    ) -> Tensor | None:
        """As `Streamer.run`. Forced or recorded lists, a watcher, memory on the host or in 8 bits: not by graphs.

        Nor passes that only commit, where frames are large or their history is a slice of the pool (`plan_pass`).
        """
        streamer, large = self.streamer, self.streamer.config.tokens > LARGE_FRAME
        special = forced is not None or record is not None or streamer.watcher is not None
        commits = plan.output == plan.frames
        if special or plan.working is not None or commits and (large or isinstance(plan.history, slice)):
            return streamer.run(plan, latents, actions, keep, generated, view, times, where, forced, record)
        inputs = (self._in_buckets(plan), latents, actions, keep, generated, view, streamer.modulation(times), where)
        key = _kind(inputs)
        if key not in self._graphs:
            self._graphs[key] = None
            while len(self._graphs) > _MOST:
                self._graphs.popitem(last=False)
            return streamer.compute(*inputs)
        self._graphs.move_to_end(key)
        graph = self._graphs[key]
        given = _tensors(inputs)
        if graph is None:
            graph = self._graphs[key] = self._recorded(inputs, given)
        else:
            fresh = [i for i, tensor in enumerate(given) if tensor is not graph.copied[i]]
            torch._foreach_copy_([graph.buffers[i] for i in fresh], [given[i] for i in fresh])
            graph.copied[:] = given
        graph.replay()
        return None if graph.result is None else graph.result.clone()

    def _recorded(self, inputs: tuple[Any, ...], given: list[Tensor]) -> _Graph:
        buffers = [tensor.clone() for tensor in given]
        plan, latents, actions, keep, generated, view, modulation, where = _filled(inputs, iter(buffers))

        def again() -> Tensor | None:
            return self.streamer.compute(plan, latents, actions, keep, generated, view, modulation, where)

        return _Graph(buffers, list(given), *self._record(again))

    def _in_buckets(self, plan: Plan) -> Plan:
        """The plan, with a history that is longer by frames that no limit allows; the same object for the same plan."""
        if self._padded is None or self._padded[0] is not plan:
            self._padded = plan, self._lengthened(plan)
        return self._padded[1]

    def _lengthened(self, plan: Plan) -> Plan:
        pool, history = self.streamer.pool, plan.history
        if isinstance(history, slice):
            count = -(-(history.stop - history.start) // BUCKET) * BUCKET
            return plan._replace(history=slice(history.start, min(history.start + count, pool.limit)))
        if history is None or isinstance(plan.table, int):
            return plan
        more = -history.shape[1] % BUCKET
        table = F.pad(plan.table, (0, more * pool.config.blocks_per_frame))
        return plan._replace(history=F.pad(history, (0, more)), table=table)


class _CudaRecorder:
    """Records into CUDA graphs that share one pool of memory: results are copied before another one runs."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"passes on {device} cannot be replayed as CUDA graphs: use device='cuda', or no graphs")
        self.device = device
        self.memory = torch.cuda.graph_pool_handle()

    def __call__(self, run: Pass) -> tuple[Callable[[], None], Tensor | None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            run()  # kernels that these buffers need are compiled and chosen before the recording, which allows neither
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self.memory, capture_error_mode="thread_local"):
                result = run()
        return graph.replay, result


def _kind(value: Any) -> Hashable:
    """All that a graph of these inputs depends on, but for the contents of tensors."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, slice):
        return "slice", value.start, value.stop
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_kind(part) for part in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    """All tensors, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, (tuple, list)) else []


def _filled(value: Any, tensors: Any) -> Any:
    """The same structure with other tensors, taken from an iterator."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, (tuple, list)):
        parts = [_filled(part, tensors) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
