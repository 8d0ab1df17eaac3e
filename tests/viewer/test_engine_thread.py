import numpy as np
import pytest

from decmem_env.conventions.actions import Action, noop, parse_action_string
from decmem_env.viewer.engine_thread import FAILED, PLAYING
from decmem_env.viewer.saves import list_saves


def said(thread):
    found = []
    while not thread.messages.empty():
        found.append(thread.messages.get())
    return " | ".join(found)


def test_script_runs_in_order_and_history_follows(engine, wait_for):
    script = parse_action_string("W*3 L*2")
    thread = engine(rate=None, script=script, pause_at_end=True)
    wait_for(lambda: thread.feed_done)
    assert thread.latest.index == 2 + 5 and len(thread.history) == 3 + 5
    poses = thread.history.poses()
    assert poses[-1, 4] == pytest.approx(-30) and poses[5, 2] > poses[2, 2]
    np.testing.assert_array_equal(thread.latest.pose, poses[-1])


def test_turn_based_steps_on_input_alone(engine, press, wait_for):
    thread = engine(rate=200.0, turn_based=True)
    wait_for(lambda: thread.resting)
    assert thread.latest.index == 2
    thread.mailbox.press("w", (Action.FORWARD, 1.0))
    thread.mailbox.release("w")
    thread.wake()
    wait_for(lambda: thread.latest.index == 3)
    wait_for(lambda: thread.resting)
    assert thread.latest.index == 3 and thread.latest.action[Action.FORWARD] == 1


def test_time_flows_then_rests_then_wakes(engine, press, wait_for):
    thread = engine(rate=2000.0)
    wait_for(lambda: thread.resting)
    rested = thread.latest.index
    assert rested > 10
    thread.mailbox.press("d", (Action.RIGHT, 1.0))
    thread.wake()
    wait_for(lambda: thread.latest.index > rested)


def test_pause_and_single_step(engine, press, wait_for):
    thread = engine(turn_based=True, rate=None)
    thread.set_paused(True)
    thread.mailbox.press("w", (Action.FORWARD, 1.0))
    thread.single_step()
    wait_for(lambda: thread.latest.index == 3)
    thread.single_step()
    wait_for(lambda: thread.latest.index == 4)
    assert thread.paused and thread.latest.action[Action.FORWARD] == 1


def test_rate_is_kept(engine, press, wait_for):
    thread = engine(rate=50.0)
    thread.mailbox.press("w", (Action.FORWARD, 1.0))
    thread.wake()
    wait_for(lambda: thread.latest.index >= 32)
    assert 35.0 < thread.timing().fps < 55.0


def test_save_and_load_continue_identically(engine, tmp_path, press, wait_for):
    thread = engine(rate=None, script=parse_action_string("W*4"), pause_at_end=True)
    wait_for(lambda: thread.feed_done)
    thread.save()
    wait_for(lambda: list_saves(tmp_path / "saves"))
    saved = thread.latest
    [card] = list_saves(tmp_path / "saves")
    assert (card.seed, card.index) == (7, saved.index)
    np.testing.assert_array_equal(card.picture, saved.frame)

    def four_more():
        for _ in range(4):
            index = thread.latest.index
            thread.mailbox.press("l", (Action.CAMERA_YAW, -1.0))
            thread.single_step()
            wait_for(lambda before=index: thread.latest.index == before + 1)
        return thread.latest.frame

    first = four_more()
    thread.reset(9)
    wait_for(lambda: thread.latest.index == 2)
    thread.load(card.folder)
    wait_for(lambda: thread.latest.index == saved.index)
    np.testing.assert_array_equal(thread.latest.frame, saved.frame)
    assert len(thread.history) == saved.index + 1
    np.testing.assert_array_equal(four_more(), first)


def test_a_bad_save_is_a_message_not_an_end(engine, tmp_path, wait_for):
    thread = engine(rate=None, turn_based=True)
    (tmp_path / "saves" / "x").mkdir(parents=True)
    thread.load(tmp_path / "saves" / "x")
    wait_for(lambda: not thread.messages.empty())
    assert "no saved state" in said(thread)
    assert thread.state.phase == PLAYING and list_saves(tmp_path / "saves") == []


def test_a_save_of_another_checkpoint_is_refused(engine, tmp_path, FakeSource, wait_for):
    thread = engine(rate=None, turn_based=True)
    thread.save()
    wait_for(lambda: list_saves(tmp_path / "saves"))
    other = FakeSource()
    other.title = "other"
    second = engine(other, rate=None, turn_based=True)
    second.load(list_saves(tmp_path / "saves")[0].folder)
    wait_for(lambda: not second.messages.empty())
    assert "saved with fake, this is other" in said(second)
    assert second.state.phase == PLAYING


def test_an_error_of_the_model_becomes_a_state(engine, capfd, FakeSource, wait_for):
    thread = engine(FakeSource(fail_at=5), rate=None, script=np.stack([noop()] * 9))
    wait_for(lambda: thread.state.phase == FAILED)
    assert thread.state.text == "the weights melted: use fresh ones"
    assert thread.latest.index == 4
    assert "RuntimeError" in capfd.readouterr().err
    thread.join(5)
    assert thread.source.closed


def test_truth_comes_at_once_and_with_every_frame(engine, FakeSource, wait_for):
    source = FakeSource()
    thread = engine(source, rate=None, turn_based=True)
    assert thread.latest.truth is None
    thread.set_truth(True)
    wait_for(lambda: thread.latest.truth is not None)
    thread.single_step()
    wait_for(lambda: thread.latest.index == 3)
    np.testing.assert_array_equal(thread.latest.truth, 255 - thread.latest.frame)
