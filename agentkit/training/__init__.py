"""Training a skill's adapter and measuring it."""
