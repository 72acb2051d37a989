#!/usr/bin/env python
"""`spikedet train`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("train")
