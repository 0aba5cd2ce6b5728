"""The datasets: `register_datasets` makes them known by name, `get_records` reads them."""

from .builtin import DATASET_NAMES, register_datasets
from .catalog import broken_files, check_class_lists, get_records, reader_notes

__all__ = [
    "DATASET_NAMES",
    "broken_files",
    "check_class_lists",
    "get_records",
    "reader_notes",
    "register_datasets",
]
