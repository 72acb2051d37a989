#!/usr/bin/env python
"""`spikedet import-boxes`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("import-boxes")
