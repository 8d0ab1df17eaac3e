"""Records of measurements: `docs/results/NAME.json` and the readable `NAME.md` beside it.

A record is `{"name", "value", "unit", "bar", "met", "hardware", "date", "commit", "command"}`; `met` is null where
there is no bar. A record may carry `details` (interval, counts, series); those of a test that is not complete say so
there (`unfinished`).
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Record = dict[str, Any]
FIELDS = ("name", "value", "unit", "bar", "met", "hardware", "date", "commit", "command")


@functools.lru_cache(maxsize=1)
def cpu_name() -> str:
    """Name of the CPU as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown CPU"


def hardware(device: str = "cpu") -> str:
    """One line that names the machine a figure was measured on."""
    import torch

    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(torch.device(device))}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    cores = os.cpu_count()
    return f"{cpu_name()}, {cores} cores, {threads} thread{'s'[: threads != 1]}, torch {torch.__version__}"


@functools.lru_cache(maxsize=1)
def commit() -> str:
    """Short commit of the working tree this package lies in, `+` when files differ from it, else the version."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        from importlib.metadata import PackageNotFoundError, version

        try:
            return f"v{version('decmem-env')}"
        except PackageNotFoundError:
            return "unknown"


def command_line() -> str:
    """The command that is running, without its folder."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def record(
    name: str,
    value: float | int | str | bool | None,
    unit: str = "",
    *,
    bar: float | None = None,
    better: Literal["higher", "lower"] = "higher",
    met: bool | None = None,
    device: str = "cpu",
    command: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> Record:
    """Make one record.

    Args:
        name: What was measured, by the names of `measures.md`.
        value: The figure; NaN becomes null.
        unit: For example `dB` or `frames/s`.
        bar: The value to reach, if there is one.
        better: Which side of the bar is good.
        met: Overrides the comparison (for example when a gate failed).
        device: Where it ran, for the hardware line.
        command: The command that reproduces it; the running one when None.
        details: Anything else worth keeping.
    """
    number = value if not isinstance(value, float) or math.isfinite(value) else None
    if met is None and bar is not None:
        met = isinstance(number, (int, float)) and (number >= bar if better == "higher" else number <= bar)
    result: Record = {
        "name": name,
        "value": round(number, 4) if isinstance(number, float) else number,
        "unit": unit,
        "bar": bar,
        "met": met,
        "hardware": hardware(device),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "command": command or command_line(),
    }
    if details:
        result["details"] = _plain(dict(details))
    return result


def unfinished(records: Sequence[Record], done: int, total: int) -> list[Record]:
    """Records of a test that is not complete: how far it came in the details, and no verdicts.

    Args:
        records: Over the worlds that are done.
        done: Their number, `details.done_worlds`.
        total: Worlds of the complete test, `details.of_worlds`; a complete record has neither.
    """
    progress = {"done_worlds": done, "of_worlds": total}
    return [{**item, "met": None, "details": {**item.get("details", {}), **progress}} for item in records]


def progress_note(item: Record) -> str:
    """`unfinished: 12 of 64 worlds`, or nothing for a record of a complete test."""
    details = item.get("details", {})
    return f"unfinished: {details['done_worlds']} of {details['of_worlds']} worlds" if "of_worlds" in details else ""


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write JSON atomically (strict: no NaN)."""
    text = json.dumps(_plain(value), indent=1, allow_nan=False)
    return write_atomically(path, (text + "\n").encode())


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a file so that a reader sees the old one or the whole new one.

    Raises:
        OSError: The folder cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def read_results(path: str | os.PathLike[str]) -> list[Record]:
    """Read `NAME.json` and check its shape.

    Raises:
        ValueError: Not a list of records; the first fault is named.
    """
    try:
        records = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): write it with decmem_env.results.write_json") from None
    if not isinstance(records, list):
        raise ValueError(f"{path} holds {type(records).__name__}: expected a list of records")
    for index, item in enumerate(records):
        missing = [field for field in FIELDS if not isinstance(item, dict) or field not in item]
        if missing:
            raise ValueError(f"{path}: record {index} lacks {', '.join(missing)}")
    return records


def write_results(path: str | os.PathLike[str], records: Sequence[Record], title: str = "", note: str = "") -> Path:
    """Write `NAME.json` and `NAME.md` beside each other, both atomically."""
    target = write_json(path, list(records))
    write_atomically(target.with_suffix(".md"), page(records, title or target.stem, note).encode())
    return target


def page(records: Sequence[Record], title: str, note: str = "") -> str:
    """Markdown page of records: one table a (hardware, command) pair, so that every figure names its origin."""
    lines = [f"# {title}", ""]
    if note:
        lines += [note, ""]
    origins: dict[tuple[str, str, str, str], list[Record]] = {}
    for item in records:
        key = tuple(str(item[field]) for field in ("hardware", "date", "commit", "command"))
        origins.setdefault(key, []).append(item)  # type: ignore[arg-type]
    for (machine, date, revision, command), items in origins.items():
        lines += [f"`{command}`", "", f"{machine}; {date}; commit {revision}", ""]
        lines += ["| what | value | bar | met |", "|---|---|---|---|"]
        for item in items:
            value = "-" if item["value"] is None else f"{item['value']} {item['unit']}".strip()
            bar = "" if item["bar"] is None else f"{item['bar']}"
            met = {True: "yes", False: "**no**", None: ""}[item["met"]]
            note = f", {progress_note(item)}" if progress_note(item) else ""
            lines.append(f"| {item['name']}{_spread(item)}{note} | {value} | {bar} | {met} |")
        lines.append("")
    return "\n".join(lines)


def _spread(item: Record) -> str:
    details = item.get("details", {})
    if "low" in details and details["low"] is not None:
        groups = f"{details['clips']} clips" if "clips" in details else f"{details['worlds']} worlds"
        return f" ({details['low']:.2f} to {details['high']:.2f}, {details['frames']} frames, {groups})"
    return ""


def _plain(value: Any) -> Any:
    """Turn numpy values and NaN into what strict JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
