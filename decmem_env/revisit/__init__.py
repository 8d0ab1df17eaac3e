"""Scripted revisit test: does the world stay the same when the player comes back? (definitions: measures.md)."""

from .evaluate import Contender, Outcome, Revisits, evaluate, standard_contenders
from .long_run import long_run_records
from .matches import Matches, match_poses
from .parts import frames_to_generate
from .scripts import KINDS, Script
from .table import Cell, cells, records, text_table
from .visible import visible_mask

__all__ = [
    "KINDS",
    "Cell",
    "Contender",
    "Matches",
    "Outcome",
    "Revisits",
    "Script",
    "cells",
    "evaluate",
    "frames_to_generate",
    "long_run_records",
    "match_poses",
    "records",
    "standard_contenders",
    "text_table",
    "visible_mask",
]
