"""What was measured: rate differences (bdrate), tables (summary), plots, classic codecs (codecs), speeds (bench)."""
