"""What a study asks and what it found: profiles, runs, records. Plain data, no torch."""
