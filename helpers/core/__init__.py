"""What every room stands on: checks of arguments, paths, networks' modules, this machine, identities of code."""
