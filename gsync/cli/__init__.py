"""The command line: one file per group of commands, which parses, calls the rooms below and prints."""
