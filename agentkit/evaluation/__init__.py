"""What a skill gets right on labelled rows: predictions, exact metrics, intervals, pictures."""
