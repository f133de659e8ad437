"""A generator of small data sets in the official layout whose truth is known."""

from popularity.demo.generator import generate
from popularity.demo.params import DemoParams

__all__ = ["DemoParams", "generate"]
