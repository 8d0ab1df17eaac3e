"""Retrieved blocks that sessions are given for a pass (`force_lists`), and those they keep of it (`last_lists`)."""

from __future__ import annotations

import torch

from .attention import BlockLists
from .session import Session


def given_lists(sessions: list[Session], device: torch.device) -> list[BlockLists] | None:
    """Lists forced on all sessions of a batch, stacked; None if there are none."""
    given = [session.force_lists for session in sessions if session.force_lists is not None]
    if not given:
        return None
    if len(given) < len(sessions):
        raise ValueError("force_lists is set on some sessions of a batch only: set it on all, or step them apart")
    layers = zip(*given, strict=True)
    return [BlockLists(*(torch.cat(t).to(device) for t in zip(*layer, strict=True))) for layer in layers]


def keep_lists(sessions: list[Session], record: list[BlockLists] | None, rows: int) -> None:
    """Give every session that records them its lists of a pass, the first `rows` query blocks; the others none."""
    for i, session in enumerate(sessions):
        session.last_lists = None
        if record is not None and session.record_lists:
            session.last_lists = [BlockLists(*(t[i, :, :rows].cpu() for t in layer)) for layer in record]
