"""Domains into files: what a store holds, record by record, as JSON lines or Parquet; the import brings it back exactly."""

from datalayer.exporting.export import ExportProgress, ExportReport, export_domain
from datalayer.exporting.shapes import SHAPES

__all__ = ["SHAPES", "ExportProgress", "ExportReport", "export_domain"]
