"""The sections of the page, one module each.

A module names the files that its section reads in READS, as `popularity.core.paths` does, and builds it with `build`.
"""
