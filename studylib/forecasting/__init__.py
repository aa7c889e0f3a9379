"""What a training step needs on a card, traced without one."""
