#!/usr/bin/env python
"""`spikedet reproduce`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("reproduce")
