"""Demonstrations on disk, statistics, training chunks and the cache of frozen features."""
