"""Public file formats of scans, annotations, proposals and videos, read and written."""
