#!/usr/bin/env python
"""`spikedet analyze`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("analyze")
