"""The report that a person reads: one HTML page that loads no other file, and a model card."""
