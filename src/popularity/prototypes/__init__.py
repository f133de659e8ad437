"""Class prototypes (method.md, Sec 3.1): representative posts of a class, their mean, and that mean without one post.

`vectors` and `sampling` need NumPy alone; `classes` and `build` need polars.
"""
