"""Doubles that users and tests can import."""
