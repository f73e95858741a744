"""Which way of training suits a situation, and what was measured of it."""
