"""Part of Negawatt."""
