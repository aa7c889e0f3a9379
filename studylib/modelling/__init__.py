"""Models and what a method does to them; their weights, losses and files."""
