"""Scene understanding on the policy's encoder: scans, questions, heads, metrics, correspondence."""
