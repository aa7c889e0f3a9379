"""What everything may use: errors, files, statistics, metrics. Knows of no model and no study."""
