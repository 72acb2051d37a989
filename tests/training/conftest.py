"""The devkit of coloured squares and what is made on it."""

from support.squares import devkit, sides, stages_done  # noqa: F401
