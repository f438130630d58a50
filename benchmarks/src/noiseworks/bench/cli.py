"""The command line of the runner: `noiseworks bench [compose|train-testbed|cards|...]`."""
