"""Training settings: dataclasses, YAML recipes, single overrides. Unknown names are errors that list the known ones."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).parent / "configs"


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or contradictory; the message names it."""


@dataclass
class RunConfig:
    """Length, logging, saving.

    Attributes:
        seed: Of weights, noise and worlds.
        minutes: The schedule anneals over this wall-clock time, start-up included, summed over resumed pieces.
            None: the time of the first piece's `--max-minutes`.
        steps: The schedule also ends here, whichever comes first. None: no limit.
        reserve_seconds: Kept back at the end of every piece for saving, evaluating and exporting.
        log_seconds: Between progress lines.
        save_seconds: Between saves of the state.
        compile: Use torch.compile (CUDA only; CPU runs stay eager).
        precision: "bf16" (autocast; weights stay fp32) or "fp32".
        validation_worlds: Held-out worlds (seeds from 7,000,000 on) for the evaluation at the end.
    """

    seed: int = 0
    minutes: float | None = None
    steps: int | None = None
    reserve_seconds: float = 20.0
    log_seconds: float = 10.0
    save_seconds: float = 120.0
    compile: bool = True
    precision: str = "bf16"
    validation_worlds: int = 24


@dataclass
class DataConfig:
    """Where frames come from and how clips are cut.

    Attributes:
        source: "voxel" (worlds rendered on the fly) or "worldmem" (mp4 + npz clips named by `csv`).
        csv: Index with columns video_path,action_path ("worldmem" only).
        skip_frames: Frames skipped at the start of every clip ("worldmem" only; its videos start badly).
        workers: Processes that make worlds or read clips; 0 works inside the main process, reproducibly.
        batch: Frames (autoencoder) or clips (dynamics) a step, on each GPU.
        frames: Clip length T (dynamics).
        episode_frames: Length of a simulated trajectory.
        episodes_per_world: Trajectories a world; alternately on the grid of poses and off it.
        worlds_per_job: Worlds that a worker simulates together.
        edits: Share of simulated trajectories that break and place blocks, leave and come back.
        told: Share of clips whose changed cells the model is told, where it can be (`model.voxel_hands`).
        contact: Share of simulated trajectories that run into walls, climb and fall (`worlds` kind `contact`).
        dreams: Share of rows whose latents are the model's own (pose).
        slow: Share of those off the grid of poses whose turns and steps take up to 16 times as many frames.
        beside: Share of walks' returns that come back beside the way out, so that views are near instead of exact.
        tilted: Share of walks without edits that look up or down all the way.
        unsteady: Share of walks without edits whose eyes wander, up and down and to the sides.
        pool_worlds: Worlds kept on the device (autoencoder).
        pool_episodes: Encoded trajectories kept on the device (dynamics).
        min_fill: Worlds or trajectories that must be there before the first step.
        refresh_ratio: New frames encoded per frame trained (dynamics); worlds added per step at most (autoencoder).
        splice: Share of clips made of two or three pieces of a trajectory with time gaps.
        jumps: Share of clips that jump about in their trajectory, mostly back to what they have shown.
        wide: Share of clips without edits whose frames do not get to see the views nearest to them (up to a random
            distance each), where they go by place: they learn to show a place that was seen from elsewhere.
        aged: Share of clips whose earlier part is made older, up to two hours, than the trajectory says.
        frame_offset: Frame indices start at a random number up to this.
    """

    source: str = "voxel"
    csv: str | None = None
    skip_frames: int = 100
    workers: int = 12
    batch: int = 16
    frames: int = 64
    episode_frames: int = 512
    episodes_per_world: int = 2
    worlds_per_job: int = 2
    edits: float = 0.25
    told: float = 0.8
    contact: float = 0.0
    dreams: float = 0.0
    slow: float = 0.4
    beside: float = 0.5
    tilted: float = 0.25
    unsteady: float = 0.5
    pool_worlds: int = 768
    pool_episodes: int = 4096
    min_fill: int = 192
    refresh_ratio: float = 0.25
    splice: float = 0.5
    jumps: float = 0.5
    wide: float = 0.0
    aged: float = 0.5
    frame_offset: int = 4096


@dataclass
class OptimiserConfig:
    """Muon for the matrices of the blocks, AdamW for the rest.

    Attributes:
        lr: Peak learning rate of AdamW.
        muon: Use Muon (off: AdamW for everything).
        muon_ratio: Muon's rate over AdamW's (at 1 its updates have AdamW's usual size; short runs bear more).
        weight_decay: Decoupled, on matrices only.
        warmup: Steps of linear warm-up.
        schedule: "cosine" (to `final`) or "trapezoid" (flat, then linear over the last `cooldown` share).
        final: Last learning rate as a share of the peak.
        cooldown: Share of the run, trapezoid only.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights per step, once warmed up.
    """

    lr: float = 1.5e-3
    muon: bool = True
    muon_ratio: float = 4.0
    weight_decay: float = 0.02
    warmup: int = 100
    schedule: str = "cosine"
    final: float = 0.02
    cooldown: float = 0.4
    clip: float = 1.0
    ema: float = 0.999


@dataclass
class ObjectiveConfig:
    """What is learnt (defaults: `shared/reference/tiny-model.md`).

    Attributes:
        task: "autoencoder", "dynamics" or "pose".
        attention: "memory", "dense" or "window" (dynamics).
        weight: Of a frame's velocity error: "velocity" (1), "x0" (t^2, the error of the clean latent) or "log"
            (1 / (own error + `log_floor`), the gradient of the mean PSNR).
        log_floor: Error of a unit-variance latent below which a frame's weight grows no more.
        edit_weight: Times that cells count which show what a player broke or placed.
        pure_noise: Share of frames at flow time 1.
        new_view_noise: The same of frames that show something new (`model.keyframes`), which a sampler of several steps
            makes (`model.new_view_steps`). Their predictions become context only in cells that still show the truth,
            and the discriminator pushes them only late in the sampler's course. None: they are as all others.
        time_mean: Of the logit of (1 - t) of the other frames (t = 1 is noise): below 0 favours noise.
        time_std: Its standard deviation.
        context_noise: Largest flow time of the noised context frames, which the model is told.
        context_noise_share: Share of context frames that are noised.
        action_dropout: Share of noisy frames whose action is dropped; history keeps its actions.
        self_context: Share of clips whose later context turns into the model's own frames (`data/own_context.py`).
        self_context_rounds: Steps for which such clips are kept; the context is up to so many generations deep.
        self_context_groups: Batches kept in turn, so that consecutive steps see different clips.
        adversarial: Push of a discriminator towards true-looking frames over the pull of the flow loss
            (`adversarial.py`), about the share of the missing detail that is put back, at a cost in PSNR; 0: none is
            built. For the end of training. Rises from 0 over its first 100 steps.
        l1: Weight of the absolute error (autoencoder).
        l2: Weight of the squared error (autoencoder).
        gradient: Weight of the error of pixel differences (autoencoder).
    """

    task: str = "dynamics"
    attention: str = "dense"
    weight: str = "velocity"
    log_floor: float = 0.05
    edit_weight: float = 1.0
    pure_noise: float = 0.3
    new_view_noise: float | None = None
    time_mean: float = -0.5
    time_std: float = 1.2
    context_noise: float = 0.3
    context_noise_share: float = 0.6
    action_dropout: float = 0.1
    self_context: float = 0.0
    self_context_rounds: int = 6
    self_context_groups: int = 12
    adversarial: float = 0.0
    l1: float = 1.0
    l2: float = 4.0
    gradient: float = 0.5


_CHOICES = {
    "run.precision": ("bf16", "fp32"),
    "data.source": ("voxel", "worldmem"),
    "optimiser.schedule": ("cosine", "trapezoid"),
    "objective.task": ("autoencoder", "dynamics", "pose"),
    "objective.attention": ("memory", "dense", "window"),
    "objective.weight": ("velocity", "x0", "log"),
}


@dataclass
class TrainConfig:
    """All settings of one stage.

    Attributes:
        stage: Name of the stage.
        run: Length, logging, saving.
        data: Source and clips.
        optimiser: Rates.
        objective: Losses and noise.
        model: `preset` plus changes to the model config; keys left out come from the checkpoint given by `init`.
        autoencoder: Changes to the autoencoder's config (autoencoder stage).
    """

    stage: str = "dense"
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    model: dict[str, Any] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        """Check choices and ranges.

        Raises:
            ConfigError: Something does not fit.
        """
        for name, choices in _CHOICES.items():
            section, key = name.split(".")
            value = getattr(getattr(self, section), key)
            if value not in choices:
                raise ConfigError(f"{name}={value!r}: choose one of {', '.join(choices)}")
        for name in ("batch", "frames", "episode_frames", "episodes_per_world", "worlds_per_job", "min_fill"):
            if getattr(self.data, name) < 1:
                raise ConfigError(f"data.{name}={getattr(self.data, name)}: must be at least 1")
        if min(self.objective.self_context_rounds, self.objective.self_context_groups) < 1:
            raise ConfigError("objective.self_context_rounds and self_context_groups: must be at least 1")
        if self.data.source == "worldmem" and not self.data.csv:
            raise ConfigError("data.source=worldmem needs data.csv=INDEX.csv (make one with `decmem data index`)")
        if self.objective.task != "autoencoder" and self.data.frames > self.data.episode_frames:
            raise ConfigError(
                f"data.frames={self.data.frames} exceeds data.episode_frames={self.data.episode_frames}: raise it"
            )
        for name in ("edits", "told", "contact", "dreams", "slow", "beside", "tilted", "unsteady", "jumps"):
            if not 0.0 <= getattr(self.data, name) <= 1.0:
                raise ConfigError(f"data.{name}={getattr(self.data, name)}: a share from 0 to 1")
        if self.objective.log_floor <= 0.0 or self.objective.edit_weight < 0.0:
            raise ConfigError("objective.log_floor must be above 0 and objective.edit_weight at least 0")
        share = self.objective.new_view_noise
        if share is not None and not 0.0 <= share <= 1.0:
            raise ConfigError(f"objective.new_view_noise={share}: a share from 0 to 1")
        if self.objective.adversarial < 0.0 or (self.objective.adversarial > 0.0 and self.objective.pure_noise <= 0.0):
            raise ConfigError("objective.adversarial must be at least 0, and above 0 it needs objective.pure_noise")
        pool = self.data.pool_worlds if self.objective.task == "autoencoder" else self.data.pool_episodes
        if self.data.min_fill > pool:
            raise ConfigError(f"data.min_fill={self.data.min_fill} exceeds the pool of {pool}: lower it")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict."""
        return asdict(self)

    def save(self, path: Path) -> None:
        """Write the resolved settings as YAML."""
        path.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False))


def stage_names() -> list[str]:
    """Names of the bundled recipes."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def load_config(stage: str, overrides: Sequence[str] | Mapping[str, Any] = ()) -> TrainConfig:
    """Read a recipe and apply overrides.

    Args:
        stage: A bundled recipe's name or a path to a YAML file.
        overrides: "section.key=value" strings (values are YAML), or a mapping of the same names.

    Raises:
        ConfigError: Unknown stage, name or value.
    """
    path = Path(stage) if stage.endswith((".yaml", ".yml")) else CONFIGS / f"{stage}.yaml"
    if not path.is_file():
        raise ConfigError(f"unknown stage {stage!r}: choose one of {', '.join(stage_names())}, or give a .yaml file")
    config = TrainConfig(stage=path.stem)
    for name, value in _flatten(_read_yaml(path)):
        assign(config, name, value)
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        pairs = [parse_override(text) for text in overrides]
    for name, value in pairs:
        assign(config, name, value)
    config.validate()
    return config


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    base = content.pop("base", None)
    if base is None:
        return content
    merged = _read_yaml(path.parent / f"{base}.yaml")
    for section, values in content.items():
        merged[section] = {**merged.get(section, {}), **values} if isinstance(values, dict) else values
    return merged


def _flatten(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for section, values in content.items():
        if isinstance(values, dict):
            pairs += [(f"{section}.{key}", value) for key, value in values.items()]
        else:
            pairs.append((section, values))
    return pairs


def parse_override(text: str) -> tuple[str, Any]:
    """Split "section.key=value"; the value is YAML.

    Raises:
        ConfigError: No "=".
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"override {text!r}: write section.key=value, for example data.batch=16")
    return name.strip(), yaml.safe_load(value)


def assign(config: TrainConfig, name: str, value: Any) -> None:
    """Set one field by its dotted name, converting the value to the field's type.

    Raises:
        ConfigError: Unknown name, or a value of the wrong type.
    """
    section, dot, key = name.partition(".")
    sections = [f.name for f in dataclasses.fields(config) if f.name != "stage"]
    if section not in sections or not dot:
        raise ConfigError(f"unknown setting {name!r}: sections are {', '.join(sections)} (write section.key=value)")
    target = getattr(config, section)
    if isinstance(target, dict):
        target[key] = value
        return
    types_of = typing.get_type_hints(type(target))
    if key not in types_of:
        raise ConfigError(f"unknown setting {name!r}: {section} has {', '.join(types_of)}")
    setattr(target, key, _convert(name, value, types_of[key]))


def _convert(name: str, value: Any, kind: Any) -> Any:
    optional = isinstance(kind, types.UnionType)
    if optional and value is None:
        return None
    wanted = next(t for t in typing.get_args(kind) if t is not type(None)) if optional else kind
    try:
        if wanted is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if wanted is int and (isinstance(value, bool) or float(value) != int(value)):
            raise ValueError
        return wanted(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}={value!r}: expected {wanted.__name__}") from None
