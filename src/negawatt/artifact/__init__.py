"""Artifacts: models on disk, the formats they come in, and their tokenizers."""

from negawatt.artifact.artifact import Artifact as Artifact
from negawatt.artifact.shape import ModelShape as ModelShape
from negawatt.artifact.tokenizer import Tokenizer as Tokenizer

__all__ = ["Artifact", "ModelShape", "Tokenizer"]
