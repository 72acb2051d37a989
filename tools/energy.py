#!/usr/bin/env python
"""`spikedet energy`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("energy")
