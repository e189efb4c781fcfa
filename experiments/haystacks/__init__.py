"""Facts in long texts: needles as in RULER, and the stories of bAbI."""
