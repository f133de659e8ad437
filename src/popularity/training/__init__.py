"""Trains the prototype network and reads it back; `data`, `loop` and `optimizer` need neither polars nor DVC."""
