"""This project's codec beside classical speech codecs, on the same clips."""
