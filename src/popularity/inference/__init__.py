"""Every post through the trained network: Eq 11, further columns, and what explains them."""
