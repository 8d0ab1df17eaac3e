import pytest
import yaml
from decmem_env.trainers.config import CONFIGS, ConfigError, OptimiserConfig, load_config, stage_names
from decmem_env.trainers.schedule import learning_rate, progress_of


def test_every_recipe_loads():
    for name in ("autoencoder", "dense_short", "dense", "decmem", *(p.stem for p in CONFIGS.glob("*.yaml"))):
        assert load_config(name).stage == name
    assert load_config("decmem").data.frames == 128 and load_config("decmem").objective.attention == "memory"
    assert load_config("debug_decmem").objective.self_context == load_config("decmem").objective.self_context


def test_overrides_convert_and_win():
    config = load_config("dense", ["data.batch=7", "optimiser.lr=1e-3", "model.fusion=union", "run.minutes=null"])
    assert config.data.batch == 7 and config.optimiser.lr == 1e-3
    assert config.model["fusion"] == "union" and config.run.minutes is None
    assert load_config("dense", {"run.minutes": 3}).run.minutes == 3.0
    for text, share in (("0", 0.0), ("1", 1.0), ("null", None)):
        assert load_config("dense", [f"objective.new_view_noise={text}"]).objective.new_view_noise == share


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.colour=1", "unknown setting 'data.colour'"),
        ("date.batch=1", "unknown setting 'date.batch'"),
        ("data.batch", "write section.key=value"),
        ("data.batch=1.5", "expected int"),
        ("data.batch=0", "at least 1"),
        ("run.compile=3", "expected bool"),
        ("objective.attention=sparse", "choose one of memory, dense"),
        ("data.source=worldmem", "needs data.csv"),
        ("data.frames=4000", "exceeds data.episode_frames"),
        ("data.min_fill=100000", "exceeds the pool"),
        ("objective.new_view_noise=1.5", "objective.new_view_noise=1.5: a share from 0 to 1"),
        ("objective.new_view_noise=-0.1", "objective.new_view_noise=-0.1: a share"),
    ],
)
def test_bad_settings_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config("dense", [override])


def test_unknown_stage_lists_the_known_ones():
    with pytest.raises(ConfigError, match="decmem.*dense_short"):
        load_config("dance")
    assert "autoencoder" in stage_names()


def test_saved_settings_load_again(tmp_path):
    config = load_config("decmem", ["data.batch=3"])
    config.save(tmp_path / "c.yaml")
    content = yaml.safe_load((tmp_path / "c.yaml").read_text())
    content.pop("stage")
    (tmp_path / "decmem.yaml").write_text(yaml.safe_dump(content))
    assert load_config(str(tmp_path / "decmem.yaml")) == config


def test_progress_takes_the_larger_share():
    assert progress_of(5, 10, 1.0, 10.0) == 0.5
    assert progress_of(5, 10, 9.0, 10.0) == 0.9
    assert progress_of(5, None, 0.0, None) == 0.0
    assert progress_of(50, 10, 0.0, None) == 1.0


def test_schedules():
    cosine = OptimiserConfig(lr=1.0, warmup=10, final=0.1)
    assert learning_rate(cosine, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(cosine, 100, 0.0) == pytest.approx(1.0)
    assert learning_rate(cosine, 100, 0.5) == pytest.approx(0.55)
    assert learning_rate(cosine, 100, 1.0) == pytest.approx(0.1)
    trapezoid = OptimiserConfig(lr=1.0, warmup=1, schedule="trapezoid", cooldown=0.4, final=0.0)
    assert learning_rate(trapezoid, 100, 0.6) == pytest.approx(1.0)
    assert learning_rate(trapezoid, 100, 0.8) == pytest.approx(0.5)
