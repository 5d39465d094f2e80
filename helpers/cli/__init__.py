"""The commands of `python -m helpers`, and what `make test` runs."""
