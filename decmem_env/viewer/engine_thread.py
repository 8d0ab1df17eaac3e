"""The engine's thread: it works at its own pace; the window looks at its newest frame and never waits for it."""

from __future__ import annotations

import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .history import History
from .keymap import ActionMailbox
from .recorder import Recorder, time_stamp, unused_folder
from .replay import Recording, Verdict, check_source, use_recorded_threads
from .saves import read_save, save_seed, write_save
from .source import PlaySource, Shot

PREPARING, PLAYING, FAILED = "preparing", "playing", "failed"
# Nothing moves in a world where nobody acts: after so many frames without input time rests, and memory is saved.
_REST_AFTER = 30


@dataclass(frozen=True, eq=False)
class EngineState:
    """What the engine is doing, for the window.

    Attributes:
        phase: `preparing`, `playing` or `failed`.
        text: What is being prepared, or what failed.
        done: Progress of it.
        total: Progress at the end; 0 when unknown.
        picture: uint8 [H, W, 3] to look at meanwhile.
    """

    phase: str = PREPARING
    text: str = "loading the model"
    done: int = 0
    total: int = 0
    picture: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Timing:
    """Speed of the last frames: frames a second, median and 99th percentile in ms; None before there are any."""

    fps: float | None = None
    p50: float | None = None
    p99: float | None = None


class EngineThread(threading.Thread):
    """Owns a source and steps it with the mailbox's latest action, a script or a recording.

    Attributes readable from any thread: `state`, `latest`, `history`, `paused`, `resting`, `recorded_frames`,
    `show_truth`, `feed_done` (script or recording has run to its end, or there is none), `verdict`, `messages`.
    """

    def __init__(
        self,
        make_source: Callable[[], PlaySource],
        mailbox: ActionMailbox,
        *,
        seed: int,
        folder: Path,
        rate: float | None = 10.0,
        turn_based: bool = False,
        script: NDArray[np.float32] | None = None,
        recording: Recording | None = None,
        record: Path | None = None,
        pause_at_end: bool = False,
    ) -> None:
        """Prepare; `start()` begins.

        Args:
            make_source: Called on the thread itself, since loading a model takes a while.
            mailbox: Where the player's wishes arrive.
            seed: First world.
            folder: Where saves and recordings go.
            rate: Frames a second at most; None does not wait.
            turn_based: Step only when there is input.
            script: float32 [T, 25], run before the player's actions.
            recording: Run again and compared; decides the world and the start.
            record: Folder to record into from the first frame.
            pause_at_end: Pause when the script or the recording has ended.
        """
        super().__init__(name="decmem-engine", daemon=True)
        self.mailbox, self.history = mailbox, History()
        self.state = EngineState()
        self.latest: Shot | None = None
        self.paused = False
        self.show_truth = False
        self.verdict = Verdict(recording) if recording is not None else None
        self.messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._make_source, self._seed, self._folder = make_source, seed, folder
        self._rate, self._turn_based = rate, turn_based
        self._recording, self._record, self._pause_at_end = recording, record, pause_at_end
        actions = recording.actions if recording is not None else script
        self._feed: deque[NDArray[np.float32]] = deque(() if actions is None else actions)
        self.feed_done = not self._feed
        self._recorder: Recorder | None = None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._bell = threading.Event()
        self._stopping = False
        self._singles = 0
        self._idle = 0
        self.resting = False
        self._due = 0.0
        self._fresh = True  # nothing happened since the world began
        self._spent: deque[float] = deque(maxlen=200)
        self._times: deque[float] = deque(maxlen=20)
        self._source: PlaySource | None = None

    # -- from the window ------------------------------------------------------------------------------------------

    @property
    def source(self) -> PlaySource | None:
        """What is played; None while it loads. Read its plain attributes only."""
        return self._source

    @property
    def recorded_frames(self) -> int | None:
        """Frames of the recording in progress; None when nothing is recorded."""
        recorder = self._recorder
        return recorder.frames if recorder is not None else None

    def timing(self) -> Timing:
        """Speed of the last frames."""
        spent, times = list(self._spent), list(self._times)
        if not spent:
            return Timing()
        fps = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else None
        return Timing(fps, float(np.percentile(spent, 50)), float(np.percentile(spent, 99)))

    def wake(self) -> None:
        """Tell the engine that the mailbox has something."""
        self._bell.set()

    def set_paused(self, paused: bool) -> None:
        """Stop or go on."""
        self.paused = paused
        self._times.clear()
        self.wake()

    def single_step(self) -> None:
        """Pause and make one frame."""
        self.paused = True
        self._singles += 1
        self.wake()

    def reset(self, seed: int | None = None) -> None:
        """Begin the world of a seed (None: the present one) afresh."""
        self._post(lambda: self._begin(self._seed if seed is None else seed))

    def save(self) -> None:
        """Save into a new folder under `saves`."""
        self._post(self._save)

    def load(self, folder: Path) -> None:
        """Go on from a saved state."""
        self._post(lambda: self._load(folder))

    def toggle_recording(self) -> None:
        """Start or stop recording."""
        self._post(self._toggle_recording)

    def set_truth(self, show: bool) -> None:
        """Whether frames come with the true picture; the present one gets it at once."""
        self.show_truth = show
        self._post(self._refresh_truth)

    def stop(self, timeout: float = 30.0) -> None:
        """End the thread after the frame in progress; recordings are finished."""
        self._stopping = True
        self.wake()
        if self.is_alive():
            self.join(timeout)

    # -- on the thread ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Loop until stopped; an error becomes the `failed` state."""
        try:
            self._source = self._make_source()
            self._first()
            while not self._stopping:
                self._obey()
                action = self._next_action()
                if action is None:
                    self._bell.wait(0.25)
                    self._bell.clear()
                else:
                    self._advance(action)
                    self._wait_for_the_clock()
        except Exception as error:  # whatever the model raises must reach the player, not kill the window
            if not isinstance(error, (ValueError, OSError)):  # those say in one line what is wrong
                traceback.print_exc()
            text = str(error).strip() or type(error).__name__
            print(f"the world stopped: {text}", file=sys.stderr)
            self.state = EngineState(FAILED, text)
        finally:
            self._close()

    def _post(self, command: Callable[[], None]) -> None:
        self._commands.put(command)
        self.wake()

    def _obey(self) -> None:
        while not self._commands.empty():
            command = self._commands.get()
            try:
                command()
            except (ValueError, OSError) as error:
                self.messages.put(str(error))

    def _first(self) -> None:
        if self._recording is None:
            self._begin(self._seed)
        else:
            assert self._source is not None
            check_source(self._recording, self._source.describe())
            use_recorded_threads(self._recording)
            if self._recording.start is not None:
                self._load(self._recording.start)
            else:
                self._begin(int(self._recording.meta["seed"]))
        if self.verdict is not None and self.latest is not None:
            self.verdict.start(self.latest)
        if self._record is not None:
            self._start_recorder(self._record)

    def _begin(self, seed: int) -> None:
        source = self._source
        assert source is not None
        again = self._end_recorder()
        self.state = EngineState(PREPARING, "building the world")
        opening = source.reset(seed, self._progress)
        self._seed = seed
        self.history.clear()
        for frame, pose in zip(opening.frames, opening.poses, strict=True):
            self.history.append(frame, pose)
        self._enter(opening.shot, fresh=True)
        if again:
            self._start_recorder(unused_folder(self._folder / "recordings", time_stamp()))

    def _load(self, folder: Path) -> None:
        assert self._source is not None
        previous = self.state
        again = self._end_recorder()
        self.state = EngineState(PREPARING, "loading the saved state")
        try:
            shot = read_save(folder, self._source, self.history)
            self._seed = save_seed(folder)
            self._enter(shot, fresh=False)
            self.messages.put(f"loaded {folder.name}")
        except (ValueError, OSError):
            self.state = previous
            raise
        if again:
            self._start_recorder(unused_folder(self._folder / "recordings", time_stamp()))

    def _enter(self, shot: Shot, fresh: bool) -> None:
        """Stand at a frame that was not stepped to."""
        assert self._source is not None
        self._fresh = fresh
        self._spent.clear()
        self._times.clear()
        self.mailbox.release_all()
        self.latest = replace(shot, truth=self._source.true_picture()) if self.show_truth else shot
        self.state = EngineState(PLAYING, "")

    def _progress(self, text: str, done: int, total: int, picture: NDArray[np.uint8] | None) -> None:
        self.state = EngineState(PREPARING, text, done, total, self.state.picture if picture is None else picture)

    def _next_action(self) -> NDArray[np.float32] | None:
        single = self._singles > 0
        if self.paused and not single:
            return None
        if single:
            self._singles -= 1
        if self._feed:
            return self._feed.popleft()
        self._idle = 0 if self.mailbox.wants or single else self._idle + 1
        self.resting = self._idle > (0 if self._turn_based else _REST_AFTER)
        return None if self.resting else self.mailbox.take()

    def _advance(self, action: NDArray[np.float32]) -> None:
        assert self._source is not None
        shot = self._source.step(action, truth=self.show_truth)
        self._fresh = False
        self.history.append(shot.frame, shot.pose)
        self._spent.append(shot.step_ms)
        self._times.append(time.perf_counter())
        if self._recorder is not None:
            self._recorder.write(shot)
        if self.verdict is not None:
            self.verdict.check(shot)
        self.latest = shot
        if not self._feed and not self.feed_done:
            if self.verdict is not None:
                self.messages.put(self.verdict.sentence())
            self.paused = self.paused or self._pause_at_end
            self.feed_done = True

    def _wait_for_the_clock(self) -> None:
        if self._rate is None:
            return
        now = time.perf_counter()
        # A late frame does not make the next ones hurry.
        self._due = max(self._due + 1.0 / self._rate, now)
        while not self._stopping and (left := self._due - time.perf_counter()) > 0:
            self._obey()
            time.sleep(max(0.0, min(left, 0.02)))

    def _refresh_truth(self) -> None:
        shot = self.latest
        if self.show_truth and shot is not None and shot.truth is None and self._source is not None:
            self.latest = replace(shot, truth=self._source.true_picture())

    def _save(self) -> None:
        assert self._source is not None and self.latest is not None
        folder = unused_folder(self._folder / "saves", time_stamp())
        write_save(folder, self._source, self.latest, self.history)
        self.messages.put(f"saved to {folder}")

    def _toggle_recording(self) -> None:
        if self._end_recorder():
            return
        self._start_recorder(unused_folder(self._folder / "recordings", time_stamp()))

    def _start_recorder(self, folder: Path) -> None:
        assert self._source is not None and self.latest is not None
        facts = {**self._source.describe(), "seed": self._seed, "pose_source": self._source.pose_source}
        facts["start"] = "reset" if self._fresh else "saved state"
        recorder = Recorder(folder, facts, self.latest)
        if not self._fresh:
            write_save(folder / "start", self._source, self.latest, self.history)
        self._recorder = recorder
        self.messages.put(f"recording to {folder}")

    def _end_recorder(self) -> bool:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return False
        recorder.close()
        self.messages.put(f"{recorder.frames} frames recorded in {recorder.folder}")
        return True

    def _close(self) -> None:
        self._end_recorder()
        if self._source is not None:
            self._source.close()
