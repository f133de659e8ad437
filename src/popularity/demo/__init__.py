"""Generates small data sets in the official layout, with known truth."""

from popularity.demo.generator import generate
from popularity.demo.params import DemoParams

__all__ = ["DemoParams", "generate"]
