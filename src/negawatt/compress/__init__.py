"""Compress: a `Pass` turns an artifact into a smaller one, and is charged for its own energy."""

from negawatt.compress.compressor import compress
from negawatt.compress.draft import Draft, Factored, Quantized
from negawatt.compress.parameter import Parameter
from negawatt.compress.recipe import Recipe
from negawatt.compress.registry import PASSES, parse, technique
from negawatt.compress.source import Source
from negawatt.compress.technique import Pass, Work

__all__ = [
    "PASSES",
    "Draft",
    "Factored",
    "Parameter",
    "Pass",
    "Quantized",
    "Recipe",
    "Source",
    "Work",
    "compress",
    "parse",
    "technique",
]
