"""Annotated pictures in any format. This package does not depend on networks."""
