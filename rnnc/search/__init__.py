"""Search: proposes configurations and scores them through a function that it is given. Knows no model and no sound."""
