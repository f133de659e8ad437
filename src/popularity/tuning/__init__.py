"""Searches over parameters: trials on an Optuna study that can be killed, shared by workers, and gone on with."""
