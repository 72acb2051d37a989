#!/usr/bin/env python
"""`spikedet classify`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("classify")
