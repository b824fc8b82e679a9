"""Exporters: where samples go. None of them may fail, delay or disturb what is being measured."""

from negawatt.export.exporter import Exporter, ExportError, Outlet

__all__ = ["ExportError", "Exporter", "Outlet"]
