"""Power caps and clock ceilings: which this system permits, and holding them for as long as an engine runs.

Start in `negawatt.limits.hold`. Nothing is imported here: `negawatt.limits.keeper` has to start quickly.
"""
