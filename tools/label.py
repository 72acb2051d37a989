#!/usr/bin/env python
"""`spikedet label`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("label")
