"""Posed RGB-D scans rendered from simulated scenes, with ground truth, in ScanNet's layout."""
