#!/usr/bin/env python
"""`spikedet upgrade`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("upgrade")
