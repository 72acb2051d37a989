#!/usr/bin/env python
"""`spikedet finetune`."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("finetune")
