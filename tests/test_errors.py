"""Sentences for what a user can put right."""

from spikedet.errors import UsageError, message_of


def test_what_others_say_is_told_on_one_line():
    assert message_of(ValueError("\n  first \nsecond")) == "first"
    assert message_of(KeyError()) == "KeyError"
    assert len(message_of(OSError("x" * 10_000))) < 230


def test_our_own_sentences_stay_whole():
    assert message_of(UsageError("x" * 500)) == "x" * 500
