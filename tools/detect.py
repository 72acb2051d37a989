#!/usr/bin/env python
"""`spikedet detect`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("detect")
