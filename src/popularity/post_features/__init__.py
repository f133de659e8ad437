"""What the trained network says of every post: Eq 11, our further columns, and what explains them."""
