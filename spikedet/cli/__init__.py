"""What the commands share: types of arguments, options, refusals, `--config` files, exit codes.

Nobody else prints or exits. Exit codes: 0 done, 1 an output that cannot be written or a failed
command of tools/reproduce.py, 2 wrong arguments, and one for each kind of error in
`spikedet.errors`.
"""

from spikedet.cli.checks import (
    expect_new,
    expect_writable,
    refuse,
    warn_of_training_pictures,
)
from spikedet.cli.command import command_line, parser, progress, run
from spikedet.cli.kinds import (
    count,
    device,
    fraction,
    json_file,
    positive,
    quality,
    seed,
    temperature,
    time_steps,
    torch_device,
    weight,
    whole,
)
from spikedet.cli.options import (
    add_data_arguments,
    add_device,
    add_half,
    add_training_arguments,
    add_unlabelled,
    read,
    samples,
    split,
    training_options,
    training_settings,
    usual_split,
)

__all__ = [
    "add_data_arguments",
    "add_device",
    "add_half",
    "add_training_arguments",
    "add_unlabelled",
    "command_line",
    "count",
    "device",
    "expect_new",
    "expect_writable",
    "fraction",
    "json_file",
    "parser",
    "positive",
    "progress",
    "quality",
    "read",
    "refuse",
    "run",
    "samples",
    "seed",
    "split",
    "temperature",
    "time_steps",
    "torch_device",
    "training_options",
    "training_settings",
    "usual_split",
    "warn_of_training_pictures",
    "weight",
    "whole",
]
