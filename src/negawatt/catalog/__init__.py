"""The catalogue: models, data sets and runtimes that can be fetched by name, pinned by hash."""

from negawatt.catalog.entry import Entry as Entry
from negawatt.catalog.entry import entries as entries
from negawatt.catalog.entry import entry as entry
from negawatt.catalog.store import find as find
from negawatt.catalog.store import folder as folder
from negawatt.catalog.store import pull as pull
from negawatt.catalog.store import verify as verify

__all__ = ["Entry", "entries", "entry", "find", "folder", "pull", "verify"]
