"""Odd One Out: four systems that find what does not belong in a picture."""
