"""Annotated pictures, whatever format they come in; knows no network."""
