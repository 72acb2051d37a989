#!/usr/bin/env python
"""`spikedet prepare cifar10`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("prepare")
