"""Sentences for what a user can put right."""

from spikedet.errors import UsageError, said


def test_what_others_say_is_told_on_one_line():
    assert said(ValueError("\n  first \nsecond")) == "first"
    assert said(KeyError()) == "KeyError"
    assert len(said(OSError("x" * 10_000))) < 230


def test_our_own_sentences_stay_whole():
    assert said(UsageError("x" * 500)) == "x" * 500
