#!/usr/bin/env python
"""`spikedet halve`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("halve")
