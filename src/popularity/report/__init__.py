"""The report that a person reads: one HTML page that needs nothing beside itself, and a model card."""
