"""Class prototypes (method.md, Sec 3.1): which posts stand for a class, their mean, and that mean without one of them.

`vectors` and `sampling` need NumPy alone; `classes` and `build` need polars.
"""
