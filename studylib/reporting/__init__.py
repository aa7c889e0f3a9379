"""From records to tables, figures and verdicts on the claims. No torch."""
