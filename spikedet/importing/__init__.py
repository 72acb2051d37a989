"""Trained weights of other people's programs, read without running any code of theirs."""
