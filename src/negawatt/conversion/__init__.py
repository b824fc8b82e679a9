"""Conversions: a model written for another program, read back, and compared with what it was made from."""

from negawatt.conversion.conversion import convert
from negawatt.conversion.forms import FORMS, Form, Target, parse

__all__ = ["FORMS", "Form", "Target", "convert", "parse"]
