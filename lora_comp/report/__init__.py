"""What a run showed: rate differences (bdrate), tables (summary), plots, and classic codecs beside it (codecs)."""
