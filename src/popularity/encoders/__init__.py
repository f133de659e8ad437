"""Frozen encoders of pictures and texts: where their weights come from, what they compute, and how a data
set passes through them in resumable parts.

`image_blocks` and `text_blocks` need polars; the encoders themselves and `parts` do not.
"""
