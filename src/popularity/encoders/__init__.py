"""Frozen encoders of images and texts: their weights, their outputs, and how a data set passes through them.

Each encoder is a file that ends in `_image` or `_text` and registers itself (`registry`). `image` and `text` hold the
shared code of encoders, `prompting` soft prompts, `sharding` the resumable shards of a data set. `image_blocks` and
`text_blocks`, which the stages call, need polars; the other modules do not.
"""
