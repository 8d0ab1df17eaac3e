"""Which stored tensor fills which parameter: by known names first, then by the end of the name and the shape.

A guess needs all of: equal shape (up to axes of length one), the same block number, the longest common end of the two
names, and nobody else with as long a one. What has no such partner is reported, never filled in silence.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .formats import family_of
from .wan_keys import is_text, to_native
from .weight_files import TensorInfo

_PARTS = ("q", "k", "v")
_FUSED = re.compile(r"^(.*\.)([qkv])(\.(?:weight|bias))$")
_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")
# Words that say nothing about which layer it is.
_FILLERS = frozenset({"proj", "linear", "layer", "fc", "to", "net", "mlp", "weight", "bias"})
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """A parameter and what fills it.

    Attributes:
        target: Name of our parameter.
        sources: One name in the file, or three (q, k, v) that are joined along the first axis.
        shape: Of our parameter.
        how: `name`, `wan`, `diffusers` or `guess`.
    """

    target: str
    sources: tuple[str, ...]
    shape: Shape
    how: str


@dataclass
class Match:
    """Outcome of matching a file with a model.

    Attributes:
        pairs: What fits.
        missing: Parameters that nothing fills, with their shapes.
        unexpected: Tensors of the file that nothing takes, with their shapes.
        misfits: Right name, wrong shape: (name in the file, its shape, parameter, its shape).
        left_out: Text conditioning that this model has no part for.
    """

    pairs: list[Pair] = field(default_factory=list)
    missing: dict[str, Shape] = field(default_factory=dict)
    unexpected: dict[str, Shape] = field(default_factory=dict)
    misfits: list[tuple[str, Shape, str, Shape]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every parameter is filled and every tensor used."""
        return not (self.missing or self.unexpected or self.misfits)

    @property
    def summary(self) -> str:
        """Counts in one line."""
        guesses = sum(pair.how == "guess" for pair in self.pairs)
        return (
            f"{len(self.pairs)} matched ({guesses} guessed), {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.misfits)} of another shape"
        )


def match_names(clean: Mapping[str, str], infos: Mapping[str, TensorInfo], targets: Mapping[str, Shape]) -> Match:
    """Match the tensors of a file with the parameters of a model.

    Args:
        clean: Bare name by the name in the file (`formats.bare_names`).
        infos: Shapes by the name in the file.
        targets: Shape of every parameter.

    Returns:
        Pairs and what is left over on both sides.
    """
    family = family_of(clean.values())
    result = Match()
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    single: dict[str, tuple[str, str]] = {}
    loose: dict[str, str] = {}
    for source, bare in clean.items():
        name, how, text = _known(bare, family, targets)
        fused = _FUSED.match(name) if name else None
        if name is not None and name in targets and name not in single:
            single[name] = (source, how)
        elif fused and f"{fused[1]}qkv{fused[3]}" in targets:
            parts[f"{fused[1]}qkv{fused[3]}"][fused[2]] = source
        elif text:
            result.left_out.append(source)
        else:
            loose[source] = bare
    for target, (source, how) in single.items():
        shape = infos[source].shape
        if _fits(shape, targets[target]):
            result.pairs.append(Pair(target, (source,), targets[target], how))
        else:
            result.misfits.append((source, shape, target, targets[target]))
    for target, thirds in parts.items():
        rows, rest = targets[target][0] // 3, targets[target][1:]
        wrong = [s for s in thirds.values() if infos[s].shape != (rows, *rest)]
        if wrong:
            result.misfits += [(s, infos[s].shape, target, (rows, *rest)) for s in wrong]
        elif len(thirds) < 3:
            loose.update({s: clean[s] for s in thirds.values()})
        else:
            result.pairs.append(Pair(target, tuple(thirds[p] for p in _PARTS), targets[target], _how(family)))
    taken = {pair.target for pair in result.pairs} | {misfit[2] for misfit in result.misfits}
    free = {name: shape for name, shape in targets.items() if name not in taken}
    for source, target in _guesses(loose, infos, free):
        result.pairs.append(Pair(target, (source,), free.pop(target), "guess"))
        del loose[source]
    result.missing = free
    result.unexpected = {name: infos[name].shape for name in loose}
    order = {name: i for i, name in enumerate(targets)}
    result.pairs.sort(key=lambda pair: order[pair.target])
    return result


def assemble(pair: Pair, read: Callable[[str], Tensor]) -> Tensor:
    """The tensor of a pair in our parameter's shape.

    Args:
        pair: What to join.
        read: Gives a tensor by its name in the file (`Weights.read`).
    """
    tensors = [read(name) for name in pair.sources]
    whole = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return whole.reshape(pair.shape)


def table(match: Match, clean: Mapping[str, str]) -> str:
    """The table for people: one line a kind of tensor, block numbers folded to `*`.

    Args:
        match: What fits what.
        clean: Bare names to show, by the names in the file.
    """
    lines = [f"{'':11} {'in the file':44} {'here':36} {'shape':20} count"]
    folded: Counter[tuple[str, str, str, str]] = Counter()
    for pair in match.pairs:
        names = clean[pair.sources[0]] + (" +k +v" if len(pair.sources) > 1 else "")
        folded[pair.how, _fold(names), _fold(pair.target), _size(pair.shape)] += 1
    for source, had, target, wanted in match.misfits:
        folded["SHAPE", _fold(clean[source]), _fold(target), f"{_size(had)} not {_size(wanted)}"] += 1
    for name, shape in match.missing.items():
        folded["MISSING", "-", _fold(name), _size(shape)] += 1
    for name, shape in match.unexpected.items():
        folded["UNEXPECTED", _fold(clean[name]), "-", _size(shape)] += 1
    if match.left_out:
        folded["left out", "text conditioning", "-", ""] += len(match.left_out)
    lines += [f"{how:11} {source:44} {target:36} {size:20} {n}" for (how, source, target, size), n in folded.items()]
    return "\n".join(line.rstrip() for line in lines)


def _how(family: str) -> str:
    return family if family in ("wan", "diffusers") else "name"


def _known(bare: str, family: str, targets: Mapping[str, Shape]) -> tuple[str | None, str, bool]:
    """(our name, how it was found, whether it is a known part of text conditioning)."""
    if bare in targets:
        # `blocks.0.modulation` is called the same in Wan; `head.weight` is ours alone.
        return bare, "name" if family not in ("wan", "diffusers") else family, False
    name = to_native(bare) if family in ("wan", "diffusers") else None
    return name, _how(family), name is not None and is_text(name)


def _squeezed(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _fits(source: Shape, target: Shape) -> bool:
    """Equal, or equal after dropping axes of length one or flattening a patch convolution."""
    if _squeezed(source) == _squeezed(target):
        return True
    flat = len(source) > 2 and len(target) == 2 and source[0] == target[0]
    return flat and math.prod(source) == math.prod(target)


def _words(name: str) -> list[str]:
    """Words of a name from its end, without the last one (`weight`) and without fillers."""
    path, _, _ = name.rpartition(".")
    return [w for w in reversed(re.split(r"[._]", path)) if w and w not in _FILLERS]


def _common(a: str, b: str) -> int:
    """Length of the common end in words; 0 where weight stands against bias."""
    if a.rpartition(".")[2] != b.rpartition(".")[2]:
        return 0
    count = 0
    for one, two in zip(_words(a), _words(b), strict=False):
        if one != two:
            break
        count += 1
    return count


def _block(name: str) -> str | None:
    found = _BLOCK.search(name)
    return found[1] if found else None


def _guesses(
    loose: Mapping[str, str], infos: Mapping[str, TensorInfo], free: Mapping[str, Shape]
) -> Iterator[tuple[str, str]]:
    """(source, target) pairs in which each is the other's only best partner."""
    places: dict[tuple[str | None, Shape], list[str]] = defaultdict(list)
    for target, shape in free.items():
        places[_block(target), _squeezed(shape)].append(target)
    best: dict[str, list[tuple[int, str]]] = defaultdict(list)
    scores: dict[str, list[tuple[int, str]]] = {}
    for source, bare in loose.items():
        candidates = places.get((_block(bare), _squeezed(infos[source].shape)), [])
        scored = [(score, target) for target in candidates if (score := _common(bare, target))]
        scores[source] = scored
        for score, target in scored:
            best[target].append((score, source))
    for source, scored in scores.items():
        chosen = _only_best(scored)
        if chosen is not None and _only_best(best[chosen]) == source:
            yield source, chosen


def _only_best(scored: Iterable[tuple[int, str]]) -> str | None:
    ranked = sorted(scored, reverse=True)
    if not ranked or (len(ranked) > 1 and ranked[0][0] == ranked[1][0]):
        return None
    return ranked[0][1]


def _fold(name: str) -> str:
    return re.sub(r"(?<=\.)(\d+)(?=\.)", lambda m: "*" if _is_block(name, m.start()) else m[0], name)


def _is_block(name: str, at: int) -> bool:
    return name[:at].endswith(("blocks.", "layers."))


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
