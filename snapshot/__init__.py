"""Freeze a loaded model into an immutable, content-addressed snapshot and bring it back by mapping it."""
