"""From evidence to advice on a reader's own case. No torch."""
