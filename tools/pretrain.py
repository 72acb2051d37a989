#!/usr/bin/env python
"""`spikedet pretrain`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("pretrain")
