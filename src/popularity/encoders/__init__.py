"""Frozen encoders of images and texts: where their weights lie, what they compute, and how a data set passes through.

Each encoder is a file that ends in `_image` or `_text` and registers itself (`registry`). `image` and `text` hold what
all of them share, `prompting` what soft prompts need, `sharding` how a data set passes through in resumable shards.
`image_blocks` and `text_blocks`, which the stages call, need polars; the rest does not.
"""
