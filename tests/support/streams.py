"""Streams that a test hands out."""

import io


class Stream(io.StringIO):
    """A stream that is a terminal, or not."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal
