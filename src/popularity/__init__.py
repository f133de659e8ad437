"""Predict the popularity of social media posts from image, text and context."""
