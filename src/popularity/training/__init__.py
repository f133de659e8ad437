"""Trains the prototype network and reads it back; `batches`, `loop` and `optimizer` need neither polars nor DVC."""
