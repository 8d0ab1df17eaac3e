"""Sources that are quick, slow or broken on purpose, and a window without a screen."""

import importlib.util
import os
import time

import numpy as np
import pytest

from decmem_env.conventions.actions import noop
from decmem_env.conventions.poses import integrate_kinematic

os.environ["SDL_VIDEODRIVER"] = "dummy"
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

if importlib.util.find_spec("pygame") is None:  # the viewer is an extra
    collect_ignore_glob = ["test_*.py"]
else:
    import pygame

    from decmem_env.viewer.app import App
    from decmem_env.viewer.engine_thread import PLAYING, EngineThread
    from decmem_env.viewer.keymap import ActionMailbox
    from decmem_env.viewer.settings import PlaySettings
    from decmem_env.viewer.source import Opening, Shot


class _FakeSource:
    """Frames that depend on seed, pose and step alone; may be slow, or fail at a step."""

    title, pose_source = "fake", "kinematic"

    def __init__(self, seconds=0.0, fail_at=None, size=(24, 40), flavour=0):
        self.seed, self.index, self.pose = 0, 0, np.zeros(5)
        self.seconds, self.fail_at, self.size, self.flavour = seconds, fail_at, size, flavour
        self.closed = False

    def _frame(self):
        rng = np.random.default_rng([self.seed, self.index, self.flavour, *(self.pose * 100 + 1e6).astype(int)])
        return rng.integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def reset(self, seed, progress):
        self.seed, self.index, self.pose = seed, 2, np.array([100.0, 20.0, 100.0, 0.0, 0.0])
        frames = np.stack([self._frame() for _ in range(3)])
        for i in range(3):
            progress("remembering", i + 1, 3, frames[i])
        return Opening(frames, np.stack([self.pose] * 3), Shot(frames[-1], self.pose, noop(), self.index))

    def step(self, action, truth=False):
        time.sleep(self.seconds)
        self.index += 1
        if self.fail_at is not None and self.index >= self.fail_at:
            raise RuntimeError("the weights melted: use fresh ones")
        self.pose = integrate_kinematic(self.pose, action)
        known = np.arange(self.index)[::-1][:6]
        shares = np.arange(len(known), 0, -1) / np.arange(len(known) + 1).sum()
        picture = self.true_picture() if truth else None
        return Shot(
            self._frame(),
            self.pose,
            action,
            self.index,
            1e3 * self.seconds,
            self.index,
            9 << 20,
            0,
            picture,
            known,
            shares,
        )

    def true_picture(self):
        return 255 - self._frame()

    def describe(self):
        return {"checkpoint": "fake", "checkpoint_hash": "abc", "sampler": {"steps": 1}}

    def save(self, folder):
        np.savez(folder / "fake.npz", index=self.index, pose=self.pose)

    def load(self, folder, seed):
        with np.load(folder / "fake.npz") as arrays:
            self.index, self.pose, self.seed = int(arrays["index"]), arrays["pose"], seed

    def close(self):
        self.closed = True


def _wait_for(condition, seconds=10.0):
    """Poll until a condition holds; a test fails when it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


@pytest.fixture
def engine(tmp_path):
    """Make running engines that are stopped after the test; returned once they play (or failed)."""
    made = []

    def make(source=None, **options):
        source = source or _FakeSource()
        thread = EngineThread(lambda: source, ActionMailbox(), seed=7, folder=tmp_path, **options)
        made.append(thread)
        thread.start()
        _wait_for(lambda: thread.state.phase != "preparing")
        return thread

    yield make
    for thread in made:
        thread.stop()
        assert not thread.is_alive()


@pytest.fixture
def app(tmp_path):
    """Make open windows; `settle` waits until the engine plays."""
    made = []

    def make(source=None, settle=True, **settings):
        window = App(PlaySettings(folder=tmp_path, scale=4, **settings), lambda: source or _FakeSource())
        window.open()
        made.append(window)
        if settle:
            _wait_for(lambda: window.engine.state.phase == PLAYING)
            window.tick()
        return window

    yield make
    for window in made:
        window.close()


@pytest.fixture
def FakeSource():
    return _FakeSource


@pytest.fixture
def wait_for():
    return _wait_for


@pytest.fixture
def press():
    """One key down and up, as the window sees it."""

    def down_and_up(window, key):
        window.handle(pygame.event.Event(pygame.KEYDOWN, key=key))
        window.handle(pygame.event.Event(pygame.KEYUP, key=key))

    return down_and_up
