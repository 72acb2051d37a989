#!/usr/bin/env python
"""`spikedet prepare voc`."""

import sys

from spikedet.commands.main import main

if __name__ == "__main__":
    main("prepare", ["voc", *sys.argv[1:]])
