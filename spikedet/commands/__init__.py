"""The command line, with one file for each command. Other packages do not parse, print or exit.

A file holds the `Options` of its command, a dataclass, and `run`, which takes them and returns an
exit code, or None for 0. Its docstring stands above the options in the help, which fits on a screen
of 40 lines: examples first. What is longer stands in `MORE`, for `--help-all`, and options that few
need first stand in groups. `main.COMMANDS` names the files.

Exit codes: 0 done, 1 an output that cannot be written or a failed command of `spikedet reproduce`,
2 wrong arguments, and one for each kind of error in `spikedet.errors`.
"""
