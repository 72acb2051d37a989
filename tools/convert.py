#!/usr/bin/env python
"""`spikedet convert`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("convert")
