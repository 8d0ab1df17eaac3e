import numpy as np
import pytest

from decmem_env.conventions import actions as A


def test_worldmem_indices_are_fixed():
    assert (A.Action.FORWARD, A.Action.BACK, A.Action.LEFT, A.Action.RIGHT) == (11, 12, 13, 14)
    assert (A.Action.CAMERA_PITCH, A.Action.CAMERA_YAW, A.Action.JUMP, A.Action.ATTACK, A.Action.PLACE) == (
        15,
        16,
        17,
        21,
        24,
    )
    assert len(A.Action) == A.ACTION_DIM


def test_discrete_covers_each_action_once():
    vectors = np.stack([A.discrete_to_vector(i) for i in range(len(A.DISCRETE_ACTIONS))])
    assert len(np.unique(vectors, axis=0)) == len(A.DISCRETE_ACTIONS)
    assert vectors[0].sum() == 0
    with pytest.raises(ValueError, match="0 to 11"):
        A.discrete_to_vector(12)


def test_multidiscrete_combines_axes():
    vector = A.multidiscrete_to_vector([1, 2, 0, 1, 1, 2])
    assert vector[A.Action.FORWARD] == 1 and vector[A.Action.RIGHT] == 1 and vector[A.Action.CAMERA_YAW] == -1
    assert vector[A.Action.JUMP] == 1 and vector[A.Action.PLACE] == 1
    with pytest.raises(ValueError, match="walk=3"):
        A.multidiscrete_to_vector([3, 0, 0, 0, 0, 0])


def test_dict_reads_degrees():
    vector = A.dict_to_vector({"forward": 1, "camera": (15.0, -30.0)})
    assert vector[A.Action.CAMERA_PITCH] == 1 and vector[A.Action.CAMERA_YAW] == -2
    with pytest.raises(ValueError, match="unknown action key 'fly'"):
        A.dict_to_vector({"fly": 1})


@pytest.mark.parametrize("text", ["W*20 L*24 S*20", "N*3 W+R*2 SPACE P B U J A D"])
def test_action_string_round_trip(text):
    actions = A.parse_action_string(text)
    assert A.format_action_string(actions) == text
    assert actions.dtype == np.float32


def test_worldmem_keymap_reads_runs():
    actions = A.parse_action_string("QQA W*2", keymap="worldmem")
    assert actions.shape == (5, 25)
    assert actions[:2, A.Action.FORWARD].sum() == 2 and actions[2, A.Action.CAMERA_YAW] == -1
    assert actions[3:, A.Action.CAMERA_PITCH].sum() == -2


@pytest.mark.parametrize(
    "text,match", [("X*3", "unknown key 'X'"), ("W*", "whole number"), ("", "empty"), ("W*a", "whole number")]
)
def test_bad_action_strings_are_named(text, match):
    with pytest.raises(ValueError, match=match):
        A.parse_action_string(text)


def test_validate_vector_names_what_is_wrong():
    with pytest.raises(ValueError, match="25 floats"):
        A.validate_vector(np.zeros(24))
    bad = A.noop()
    bad[A.Action.FORWARD] = 2
    with pytest.raises(ValueError, match="key entries"):
        A.validate_vector(bad)
    bad = A.noop()
    bad[0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        A.validate_vector(bad)
