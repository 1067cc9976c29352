"""A result as a page: one HTML file that loads nothing, for people who were not there when the command ran."""
