"""The tools behind the `d2kd` command: one module or package for each subcommand."""
