"""Decisions without effects: values (the time included) go in, values come out."""
