"""The runner: finds the installed claims, runs each (claim, seed) in its own process, judges and reports.

`session.bench` is the command; `discovery` finds claims, `tasks` runs one in a subprocess (`worker` is what
runs inside), `pool` runs many, `judge` decides, `results` is the file format, `report` and `tables` show it.
"""
