"""From trained parameters to C: tables, models as constant data."""
