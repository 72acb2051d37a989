#!/usr/bin/env python
"""`spikedet calibrate`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("calibrate")
