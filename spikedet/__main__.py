"""`python -m spikedet`: the command line."""

from spikedet.commands.main import main

if __name__ == "__main__":
    main()
