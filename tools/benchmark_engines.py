#!/usr/bin/env python
"""`spikedet benchmark-engines`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("benchmark-engines")
