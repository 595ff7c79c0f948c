"""AWS Lambda: our own client of its Runtime API, and the events that it brings."""
