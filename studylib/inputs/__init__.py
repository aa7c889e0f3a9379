"""Where models' files, training examples and questions come from. No torch."""
