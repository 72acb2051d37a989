#!/usr/bin/env python
"""Show in the browser what a spiking network sees; the same as `spikedet web`.

demo/web.py --T 8
"""

from spikedet.commands.main import main

if __name__ == "__main__":
    main("web")
