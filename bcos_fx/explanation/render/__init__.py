"""Explanations as pictures, figures, pages and text."""
