#!/usr/bin/env python
"""`spikedet average`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("average")
