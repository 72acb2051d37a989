"""The paper's tables and figures, made by the other commands; nothing else needs this room."""
