"""A test in parts: which scripts run together, what each batch found, and the whole worlds among what was found.

Batches take the worlds one after another, all rows of the table at once, so that a test that is cut has whole worlds to
show. A batch stays as full as memory and `sessions` allow: its last world may be continued by the next one, and counts
when that is done, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .scripts import Script

if TYPE_CHECKING:
    from .evaluate import Contender

Columns = dict[str, NDArray[Any]]
Tell = Callable[[str, int], None]  # (contender, frames made since the last call)
Report = Callable[[str, int, int], None]  # (contender, frames done, frames in all)


@dataclass(frozen=True)
class Part:
    """What one batch of scripts gave, in plain arrays.

    Attributes:
        scripts: Indices of the scripts.
        columns: By row of the table, then by column, each [N]; column `script` names the script of every entry.
        pictures: By index of a script, then by name.
        seconds: Spent, by kind of work.
    """

    scripts: tuple[int, ...]
    columns: dict[str, Columns]
    pictures: dict[int, Columns]
    seconds: dict[str, float] = field(default_factory=dict)


class Measure(Protocol):
    """A test that can be done in parts."""

    @property
    def walks(self) -> Sequence[Script]:
        """Every script; a part names them by their index."""

    @property
    def contenders(self) -> Sequence[Contender]:
        """Rows; the first is the model under test."""

    @property
    def seeds(self) -> int:
        """Noise seeds of every script."""

    def score(self, indices: Sequence[int], tell: Tell) -> Part:
        """Let every contender dream these scripts, of equal context and length, and score them."""

    def outcome(self, parts: Sequence[Part]) -> Any:
        """Put parts together; scripts of worlds that are not whole are left out."""


def evenly(count: int, most: int) -> set[int]:
    """At most so many of `count` numbers from 0 on, evenly spread."""
    return set(np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist())


def score_parts(
    measure: Measure,
    sessions: int,
    report: Report | None = None,
    given: Sequence[Part] = (),
    share: tuple[int, int] = (0, 1),
) -> Iterator[Part]:
    """Score the scripts batch by batch.

    Args:
        measure: What to do.
        sessions: Upper limit of sessions in one forward pass.
        report: Progress; counts the frames that are left to generate.
        given: Parts from an earlier run; their scripts are passed over.
        share: Which of how many shares of the batches to do.

    Raises:
        ValueError: A memory is too small for a single script.
    """
    known = scored(given)
    plan = list(batches(measure.walks, sessions, measure.seeds, measure.contenders, known))[share[0] :: share[1]]
    total = frames_to_generate([measure.walks[i] for part in plan for i in part], measure.contenders, measure.seeds)
    done = 0

    def tell(name: str, frames: int) -> None:
        nonlocal done
        done += frames
        if report is not None:
            report(name, done, total)

    for indices in plan:
        yield measure.score(indices, tell)


def frames_to_generate(scripts: Sequence[Script], contenders: Sequence[Contender], seeds: int) -> int:
    """Frames that scripts will take."""
    return sum(c.seeds or seeds for c in contenders) * sum(script.generated for script in scripts)


def batches(
    scripts: Sequence[Script],
    sessions: int,
    seeds: int,
    contenders: Sequence[Contender],
    known: Collection[int] = (),
) -> Iterator[list[int]]:
    """Indices of scripts that run together, world after world.

    Args:
        scripts: All of them; those of one batch have equal context and length.
        sessions: Upper limit of sessions in one forward pass.
        seeds: Sessions a script; they share its context.
        contenders: Whose memories must hold a batch without forgetting (at most one page a frame).
        known: Indices to pass over.

    Raises:
        ValueError: A memory is too small for a single script.
    """
    room = min(contender.model.pool.limit for contender in contenders)
    place = {world: number for number, world in enumerate(dict.fromkeys(script.world for script in scripts))}
    for group in _by_length(scripts):
        context, length = scripts[group[0]].context, len(scripts[group[0]].poses)
        pages = context + seeds * (length - context + 2)  # a frame being denoised and one to spare
        if pages > room:
            raise ValueError(
                f"the memory budget holds {room} frames, a walk of {length} frames with {seeds} seeds needs {pages}: "
                "use fewer --seeds, or free memory on the device"
            )
        size = max(1, min(sessions // seeds, room // pages))
        left = sorted((i for i in group if i not in known), key=lambda i: place[scripts[i].world])
        for start in range(0, len(left), size):
            yield left[start : start + size]


def scored(parts: Sequence[Part]) -> set[int]:
    """Indices of the scripts in these parts."""
    return {index for part in parts for index in part.scripts}


def whole(walks: Sequence[Script], parts: Sequence[Part]) -> list[int]:
    """Scripts of the worlds that are done with all their scripts, in an order that does not depend on the batches."""
    known = scored(parts)
    unfinished = {walk.world for index, walk in enumerate(walks) if index not in known}
    return [index for group in _by_length(walks) for index in group if walks[index].world not in unfinished]


def fingerprint(walks: Sequence[Script]) -> str:
    """Changes with any walk and with their order: what an index of a script means."""
    digest = hashlib.sha256()
    for walk in walks:
        digest.update(repr((walk.kind, walk.world, walk.grid, walk.context, walk.noise_seed)).encode())
        digest.update(walk.actions.tobytes())
        digest.update(walk.poses.tobytes())
    return digest.hexdigest()[:16]


def count_worlds(walks: Sequence[Script], chosen: Sequence[int]) -> int:
    """Distinct worlds of the chosen scripts."""
    return len({walks[index].world for index in chosen})


def gather(parts: Sequence[Part], row: str, order: Sequence[int]) -> Columns | None:
    """Columns of a row of the table, cut to the scripts in `order` and in that order; None where no part has the row.

    Sums of floating-point numbers depend on their order: this one makes a table that was cut and continued, or split
    into other batches, equal to one made in one go.
    """
    tables = [part.columns[row] for part in parts if row in part.columns]
    if not tables:
        return None
    columns = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    script = columns["script"]
    place = np.full(max([*order, *script.tolist()], default=0) + 1, -1)
    place[np.asarray(order, int)] = np.arange(len(order))
    chosen = np.argsort(place[script], kind="stable")
    chosen = chosen[place[script[chosen]] >= 0]
    return {name: column[chosen] for name, column in columns.items()}


def _by_length(scripts: Sequence[Script]) -> list[list[int]]:
    """Indices of scripts of equal context and length."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, script in enumerate(scripts):
        groups.setdefault((script.context, len(script.poses)), []).append(index)
    return list(groups.values())
