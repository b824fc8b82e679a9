"""Engines: ways to run an artifact, each in a worker process of its own."""
