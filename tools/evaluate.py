#!/usr/bin/env python
"""`spikedet evaluate`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("evaluate")
