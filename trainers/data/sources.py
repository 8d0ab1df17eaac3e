"""Opens the stream of episodes that the settings name."""

from __future__ import annotations

from ..config import TrainConfig
from ..distributed import Ranks
from .stream import EpisodeStream, Job
from .voxel import VALIDATION_JOB, VoxelJob
from .worldmem import ClipJob


def open_stream(
    config: TrainConfig, ranks: Ranks, size: tuple[int, int], first: int = 0, salt: int = 0
) -> EpisodeStream:
    """Start the workers of a run.

    Args:
        config: Resolved settings.
        ranks: This process; ranks take interleaved jobs.
        size: Frame height and width (clips are cut and resized to it).
        first: Number of the first job over all ranks; 0 for a new run.
        salt: Another number, other worlds: a stage must not see those of the stage before once more.
    """
    data = config.data
    job: Job
    if data.source == "worldmem":
        assert data.csv is not None
        job = ClipJob.from_csv(data.csv, config.run.seed, data.episode_frames, size, data.skip_frames)
    else:
        sizes = (data.episode_frames, data.worlds_per_job, data.episodes_per_world)
        job = VoxelJob(
            config.run.seed + (salt << 32),
            *sizes,
            edits=data.edits,
            contact=data.contact,
            slow=data.slow,
            beside=data.beside,
            tilted=data.tilted,
            unsteady=data.unsteady,
        )
    urgent = [VALIDATION_JOB + i for i in range(config.run.validation_worlds)] if ranks.main else []
    start = -(-first // ranks.size) * ranks.size + ranks.rank
    return EpisodeStream(job, data.workers, start, ranks.size, urgent=urgent)
