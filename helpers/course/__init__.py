"""The commands of `python -m helpers`: set up, build and execute notebooks, the README."""
