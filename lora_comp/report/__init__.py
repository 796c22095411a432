"""Reports: BD-rates (bdrate), tables (summary), plots, conventional codecs (codecs), benchmark times (bench), cards."""
