"""Long tests in parts: after every batch the worlds done so far are on disk, so that a cut loses one batch at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Bar, say
from .jobs import run_shares
from .stopping import Stop

if TYPE_CHECKING:
    from ..results import Record
    from ..revisit.parts import Measure, Part

# Intervals over hundreds of worlds take seconds: they may not cost more than a tenth of the time.
_WORK_PER_WRITING = 10


@dataclass(frozen=True)
class Conclusion:
    """What follows from an outcome.

    Attributes:
        records: For the JSON file.
        text: Makes the table for the terminal.
        remark: A line for people, or nothing.
        draw: Writes the pictures, given the records as they are written.
    """

    records: list[Record]
    text: Callable[[], str]
    remark: str
    draw: Callable[[list[Record]], None]


@dataclass(frozen=True)
class LongTest:
    """A measure, and how its outcome is read."""

    measure: Measure
    conclude: Callable[[Any], Conclusion]


def in_parts(
    test: LongTest,
    target: Path | None,
    facts: Mapping[str, object],
    sessions: int,
    device: str,
    jobs: int = 1,
    share: tuple[int, int] | None = None,
) -> int:
    """Run a test to its end, or until it is asked to stop; print the table and write the files of what is done.

    Args:
        test: What to do.
        target: JSON file of the records, written after every batch (where that takes long, after some of them). What
            it takes to go on after a cut lies beside it, up to the last batch, until the test is complete.
        facts: All that the figures depend on beside the walks, for `Sidecar`.
        sessions: Upper limit of sessions in one forward pass.
        device: For the progress line.
        jobs: Processes that do it, each a share of the batches.
        share: Which share of how many is this process's: it leaves its parts and says nothing.

    Returns:
        The exit code: 0, or that of the signal where scripts are left.
    """
    from ..results import unfinished, write_json
    from ..revisit.parts import count_worlds, fingerprint, frames_to_generate, score_parts, scored, whole
    from ..revisit.sidecar import Sidecar

    measure = test.measure
    walks = measure.walks
    worlds = count_worlds(walks, range(len(walks)))
    sidecar = Sidecar(target, {**facts, "walks": fingerprint(walks)}) if target is not None else None
    parts: list[Part] = sidecar.read() if sidecar is not None else []
    if parts and sidecar is not None:
        say(f"going on from {sidecar.folder}: {len(scored(parts))} of {len(walks)} scripts are done")

    def done() -> int:
        return count_worlds(walks, whole(walks, parts))

    def conclude() -> tuple[Conclusion, list[Record]]:
        made = test.conclude(measure.outcome(parts))
        return made, made.records if done() == worlds else unfinished(made.records, done(), worlds)

    if share is not None:
        assert sidecar is not None
        with Stop() as stop:
            for part in score_parts(measure, sessions, None, tuple(parts), share):
                sidecar.add(part)
                if stop.asked:
                    return stop.code
        return 0

    left = [walk for index, walk in enumerate(walks) if index not in scored(parts)]
    frames = frames_to_generate(left, measure.contenders, measure.seeds)
    say(
        f"{len(left)} scripts in {worlds} worlds, {measure.seeds} noise seeds, {len(measure.contenders)} rows:"
        f" {frames} frames to generate on {device}"
    )
    with Stop() as stop:
        if jobs > 1 and sidecar is not None and len(left) > 1:
            with Bar(len(left), "generating", "script") as bar:
                before = len(scored(parts))

                def tell() -> None:
                    nonlocal parts, before
                    if len(sidecar) > len(parts):
                        parts = sidecar.read()
                        bar.add(len(scored(parts)) - before)
                        before = len(scored(parts))

                run_shares(jobs, tell, stop)
            left = [walk for index, walk in enumerate(walks) if index not in scored(parts)]
            frames = frames_to_generate(left, measure.contenders, measure.seeds)
        with Bar(frames, "generating") as bar:
            seen, due = 0, 0.0

            def report(name: str, made: int, _: int) -> None:
                nonlocal seen
                bar.title(f"generating, {name}")
                bar.add(made - seen)
                seen = made

            for part in score_parts(measure, sessions, report, tuple(parts)) if not stop.asked else ():
                parts.append(part)
                if sidecar is not None:
                    sidecar.add(part)
                begun = time.monotonic()
                if target is not None and 0 < done() < worlds and begun >= due and not stop.asked:
                    write_json(target, conclude()[1])
                    ended = time.monotonic()
                    due = ended + _WORK_PER_WRITING * (ended - begun)
                if stop.asked:
                    break
        if done():
            made, records = conclude()
            written = write_json(target, records) if target is not None else None  # first: SIGKILL may be close behind
            print(made.text())
            if made.remark:
                say(made.remark)
            if written is not None:
                print(written)
            made.draw(records)
        if done() < worlds:
            print(f"{done()} of {worlds} worlds: stopped")
            if sidecar is not None:
                say(f"the same command goes on from {sidecar.folder}")
            return stop.code
        if sidecar is not None:
            sidecar.remove()
    return 0
