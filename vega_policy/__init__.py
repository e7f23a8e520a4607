"""VEGA-Policy."""
